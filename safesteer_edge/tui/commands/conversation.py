"""Slash commands that have the same effect in both chats, and what they ask of a chat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from safesteer_edge.chats.chat_log import SUMMARY_QUESTION
from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import plain_reason
from safesteer_edge.formats.user_folders import user_config_folder
from safesteer_edge.guard.policy import GUARD_MODES, GuardMode
from safesteer_edge.media.media_file import local_path
from safesteer_edge.session.protocol import SessionInfo, TurnSettings
from safesteer_edge.tui.attached_files import sorted_by_kind
from safesteer_edge.tui.chat_export import parse_target, text_to_copy, write_export, write_trace
from safesteer_edge.tui.chat_state import ChatState
from safesteer_edge.tui.guard_words import MODE_MEANINGS, better_guard
from safesteer_edge.tui.shown_turn import ShownTurn, turns_of_branch

if TYPE_CHECKING:
    from safesteer_edge.chats.chat_log import ChatLog
    from safesteer_edge.chats.recorded_chat import RecordedChat
    from safesteer_edge.session.settings import SessionSettings


_Result = TypeVar("_Result")
_MODES: dict[str, GuardMode] = {mode: mode for mode in GUARD_MODES}


class Chat(Protocol):
    """A chat as the commands see it: on the full screen, or line by line."""

    state: ChatState

    def say(self, text: str) -> None:
        """Say that something was done."""

    def refuse_while_answering(self) -> None:
        """Raise InputError while an answer is being written."""

    def show_state(self) -> None:
        """Show what the state says around the turns: title, model, guard."""

    async def show_chat(self) -> None:
        """Show the turns that the state holds, and all that is around them."""

    async def show_attachments(self) -> None:
        """Show the files that go with the next message."""

    async def attach(self, paths: Sequence[Path]) -> None:
        """Add files, all or none. Raises MediaError at the first that cannot go along."""

    def put_back(self, question: str) -> None:
        """Let the person change a question, and send it again."""

    def copy_to_clipboard(self, text: str) -> None:
        """Copy by OSC 52, which reaches the clipboard over SSH as well."""

    async def do(self, work: Callable[[RecordedChat], _Result]) -> _Result:
        """Do something with the recorded chat, on the thread that it is used by."""
        ...

    async def run_turn(self, turn: ShownTurn, *, in_place_of: str | None) -> None:
        """Add a turn to the chat, ask it, show its answer. in_place_of: in the chat's file."""

    async def go_on(self, turn: ShownTurn) -> None:
        """Let the last answer go on."""


# -- asking ----------------------------------------------------------------------------------------


async def send(chat: Chat, text: str) -> None:
    """Ask the next question, or the edited one in place of what followed it."""
    state = chat.state
    files = sorted_by_kind(state.attachments, state.named)
    state.attachments.clear()
    await chat.show_attachments()
    edited, state.edited = state.edited, None
    await _ask(chat, ShownTurn(text, *files), edited)


async def regenerate(chat: Chat, argument: str) -> None:
    """Answer a question anew, with the next seed; what followed it stays in the file alone."""
    state = chat.state
    turn = state.numbered(argument)
    chat.refuse_while_answering()
    sampling = state.settings.sampling
    state.settings = replace(
        state.settings, sampling=replace(sampling, seed=(sampling.seed + 1) % (2**32 - 1))
    )
    await _ask(chat, turn.asked_again(state.settings.guard), turn)


async def edit(chat: Chat, argument: str) -> None:
    """Put a question back into the input; sending it replaces all that came after."""
    turn = chat.state.numbered(argument)
    chat.refuse_while_answering()
    chat.state.edited = turn
    chat.state.carry_files_of(turn)
    await chat.show_attachments()
    chat.put_back(turn.question)


async def undo(chat: Chat, _argument: str) -> None:
    """Take the last question and its answer back; the chat's file keeps them."""
    turn = chat.state.numbered("")
    chat.refuse_while_answering()
    recorded = turn.question_id
    if recorded is not None:
        await chat.do(lambda chat: chat.take_back(recorded))
    chat.state.cut_from(turn)
    await chat.show_chat()
    chat.say("took back the last question and its answer")


async def continue_answer(chat: Chat, _argument: str) -> None:
    turn = chat.state.numbered("")
    chat.refuse_while_answering()
    if not turn.can_continue:
        raise InputError("the last answer is already complete")
    await chat.go_on(turn)


async def compact(chat: Chat, _argument: str) -> None:
    """Have the chat summed up: the model goes on from the summary, the person sees all."""
    chat.state.numbered("")
    chat.refuse_while_answering()
    await _ask(chat, ShownTurn(SUMMARY_QUESTION), None)


async def _ask(chat: Chat, turn: ShownTurn, replaced: ShownTurn | None) -> None:
    state, in_place_of = chat.state, None
    if replaced is not None:
        in_place_of = state.cut_from(replaced)
        await chat.show_chat()
    turn.guard = state.settings.guard
    turn.media_names = turn.media_names or (
        *(path.name for path in (*turn.images, *turn.sounds)),
        *(document.name for document in turn.documents),
    )
    await chat.run_turn(turn, in_place_of=in_place_of)
    chat.show_state()


def saved_prompt(argument: str) -> str:
    """The text of `NAME.txt` or `NAME.md` in the folder of prompts, and what was typed behind NAME.

    Raises InputError that names those that there are.
    """
    folder = user_config_folder() / "prompts"
    files = {path.stem: path for path in folder.glob("*") if path.suffix in (".txt", ".md")}
    name, _, rest = argument.partition(" ")
    if name not in files:
        known = f"your prompts: {', '.join(sorted(files))}" if files else "there are none yet"
        problem = f"there is no prompt {name!r}" if name else "give a name: /prompt NAME"
        raise InputError(f"{problem}; {known} (text files in {str(folder)!r})")
    path = files[name]
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else plain_reason(error)
        raise InputError(f"cannot read prompt {str(path)!r}: {why}; save it as UTF-8") from error
    return f"{strip_control_characters(text).strip()} {rest}".strip()


# -- what goes with the next message ---------------------------------------------------------------


async def attach(chat: Chat, argument: str) -> Path:
    path = local_path(argument.strip("'\"")).expanduser()
    await chat.attach([path])
    return path


async def detach(chat: Chat, argument: str) -> None:
    attachments = chat.state.attachments
    if not attachments:
        raise InputError("nothing is attached; use /attach FILE")
    number = argument or str(len(attachments))
    if argument == "all":
        attachments.clear()
    elif number.isdecimal() and 1 <= int(number[:9]) <= len(attachments):
        del attachments[int(number[:9]) - 1]
    else:
        raise InputError(
            f"there is no attachment {argument!r}; choose 1 to {len(attachments)}, or all"
        )
    await chat.show_attachments()


# -- how the next answer is begun, guarded and drawn -----------------------------------------------


async def system(chat: Chat, argument: str) -> None:
    state = chat.state
    if not argument:
        chat.say(f"system prompt: {state.system or 'none'}")
        return
    if state.turns:
        raise InputError("a chat that has begun keeps its system prompt; start a new one with /new")
    state.system = None if argument in ("none", "off") else argument
    chat.say(f"this chat's system prompt: {state.system or 'none'}")


def turn_setting(name: str) -> Callable[[Chat, str], Awaitable[None]]:
    """The command that sets one of the settings of the next answer, or says what it is."""

    async def run(chat: Chat, argument: str) -> None:
        state, sentence = chat.state, None
        if argument:
            state.settings, sentence = _changed(name, argument, state.settings, state.info)
            chat.show_state()
        chat.say(sentence or f"{name} is {_now(name, state.settings)}")
        if name == "guard" and (offer := better_guard(state.info)):
            chat.say(offer)

    return run


def _changed(
    name: str, argument: str, settings: TurnSettings, info: SessionInfo | None
) -> tuple[TurnSettings, str | None]:
    """The settings after `/name argument`, and a sentence, if it is not the usual one."""
    if name == "guard":
        mode = _guard_mode(argument, info)
        meaning = MODE_MEANINGS[mode]
        return replace(settings, guard=mode), f"guard set to {mode} for the next answers: {meaning}"
    if name in ("strength", "threshold"):
        value = None if argument == "default" else _number(name, argument)
        settings = replace(settings, **{name: value})
        if info is not None and info.policy is not None:
            info.policy.tightened(strength=settings.strength, threshold=settings.threshold)
        return settings, f"guard {name} is {_now(name, settings)}"
    if name == "seed" and not argument.isdecimal():
        raise InputError(f"the seed is a whole number, not {argument!r}")
    value = int(argument[:20]) if name == "seed" else _number(name, argument)
    sampling = replace(settings.sampling, **{name: value})
    return replace(settings, sampling=sampling), f"{name} is {argument}"


def _guard_mode(text: str, info: SessionInfo | None) -> GuardMode:
    mode = _MODES.get(text)
    if mode is None:
        raise InputError(f"there is no guard mode {text!r}; choose one of {', '.join(GUARD_MODES)}")
    if mode != "off" and info is not None and info.bundle is None:
        raise InputError(
            f"{info.model_name} has no guard; make one with 'safesteer-edge calibrate', or choose "
            "a model that has one"
        )
    return mode


def _now(name: str, settings: TurnSettings) -> str:
    if name == "guard":
        return f"{settings.guard}: {MODE_MEANINGS[settings.guard]}"
    if name in ("strength", "threshold"):
        value = getattr(settings, name)
        return "this guard's default" if value is None else f"{value:g}"
    return f"{getattr(settings.sampling, name):g}"


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"the {name} is a number, not {text!r}") from error


def switched(settings: SessionSettings, model: str, guard: GuardMode) -> SessionSettings:
    """The settings that another model is loaded with: what belongs to the old one's guard goes."""
    return replace(
        settings,
        model=model,
        mmproj=None,
        bundle=None,
        guard=guard,
        strength=None,
        threshold=None,
    )


# -- chats as a whole ------------------------------------------------------------------------------


async def resume(chat: Chat, chat_id: str) -> None:
    """Go on with a stored chat, or with a copy where another window has it open."""
    await _enter(chat, lambda recorded: recorded.resume(chat_id))


async def fork(chat: Chat, argument: str) -> None:
    """Go on from an answer in a copy of the chat; the chat stays as it is."""
    chat.refuse_while_answering()
    end = chat.state.numbered(argument).answer_id
    if end is None:
        raise InputError("that question has no answer to continue from; choose another")
    await _enter(chat, lambda recorded: recorded.fork(end))
    chat.say("you are now in a copy; the original chat is unchanged")


async def rename(chat: Chat, argument: str) -> None:
    if not argument:
        raise InputError("give a title: /rename TITLE")
    await chat.do(lambda recorded: recorded.rename(argument))
    chat.state.title = argument
    chat.show_state()


async def _enter(chat: Chat, work: Callable[[RecordedChat], object]) -> None:
    """Enter another chat, then show it; a question that was never answered is put back."""

    def enter(recorded: RecordedChat) -> tuple[ChatLog, str | None, list[ShownTurn]]:
        work(recorded)
        assert recorded.log is not None  # it was entered
        branch = recorded.log.branch()
        return recorded.log, *turns_of_branch(branch, recorded.media_path, recorded.is_lost)

    state = chat.state
    state.enter(*await chat.do(enter))
    if state.turns and not state.turns[-1].is_in_conversation:
        unanswered = state.turns.pop()
        state.carry_files_of(unanswered)
        chat.put_back(unanswered.question)
    await chat.show_chat()
    lost = [name for turn in state.turns for name in turn.lost]
    if lost:
        chat.say(f"{', '.join(lost)}: no longer on the disk; the chat continues without it")


# -- what leaves the chat --------------------------------------------------------------------------


async def copy(chat: Chat, argument: str) -> None:
    """Copy an answer, a code block of it, or the whole chat."""
    text, what = text_to_copy(chat.state.turns, argument)
    chat.copy_to_clipboard(text)
    chat.say(f"copied {what}")


async def export(chat: Chat, argument: str) -> None:
    """Write the chat that is open. argument: a format, a file, or both."""
    to, path = parse_target(argument)

    def work(recorded: RecordedChat) -> Path:
        if recorded.log is None:
            raise InputError("there is nothing to export yet; ask something first")
        return write_export(recorded.log, recorded.media_path, to, path)

    chat.say(f"wrote {await chat.do(work)}")


async def trace(chat: Chat, argument: str) -> None:
    path, n_steps = write_trace(chat.state.numbered(""), argument)
    chat.say(f"wrote {n_steps} steps to {path}")
