"""What slash commands do in the chat of lines."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.chat_copy import text_to_copy, write_trace
from safesteer_edge.tui.chat_state import ask_aside
from safesteer_edge.tui.shown_turn import ShownTurn, turns_of_branch
from safesteer_edge.tui.slash_commands import COMMANDS, TURN_COMMANDS, changed

if TYPE_CHECKING:
    from safesteer_edge.tui.plain_chat import PlainChat


def run_command(chat: PlainChat, name: str, argument: str) -> bool:
    """Do it; False: leave. Raises SafeSteerError."""
    if name == "quit":
        return False
    if name in TURN_COMMANDS:
        info = chat.session.info
        chat.settings, sentence = changed(name, argument, chat.settings, info)
        chat.note(sentence)
        return True
    handler = _HANDLERS.get(name)
    if handler is None:
        raise InputError(f"/{name} needs the full screen; see 'safesteer-edge settings' or --model")
    handler(chat, argument)
    return True


def _help(chat: PlainChat, _argument: str) -> None:
    for command in COMMANDS:
        if command.plain:
            chat.note(f"{command.usage:<34} {command.help}")
    chat.note("A line that ends in \\ goes on in the next one. Ctrl+C stops an answer.")


def _new(chat: PlainChat, _argument: str) -> None:
    chat.chat.start_new()
    chat.last = None
    chat.system = None
    chat.note("a new chat")


def _chats(chat: PlainChat, argument: str) -> None:
    """List chats that have these words; a number of the list goes on with that one."""
    if chat.store is None:
        raise InputError("chats are not saved; see 'safesteer-edge settings'")
    summaries = [each for each in chat.store.list() if each.problem is None]
    if argument.isdecimal():
        if not 1 <= int(argument) <= len(summaries):
            raise InputError(f"chat {argument!r}; expected 1 to {len(summaries)}")
        chosen = summaries[int(argument) - 1]
        chat.resume(chosen.id)
        return
    hits = {hit.chat.id for hit in chat.store.search(argument)} if argument else set[str]()
    for number, each in enumerate(summaries, 1):
        if argument and each.id not in hits and argument.casefold() not in each.title.casefold():
            continue
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.updated_at))
        chat.note(f"{number:>3}  {at}  {each.title}")
    chat.note("/chats NUMBER goes on with one")


def _model(chat: PlainChat, argument: str) -> None:
    if not argument:
        raise InputError("give a name or a .gguf file; 'safesteer-edge models list' lists them")
    settings = replace(
        chat.session_settings,
        model=argument,
        mmproj=None,
        bundle=None,
        strength=None,
        threshold=None,
        guard=chat.settings.guard,
    )
    # Two models may not fit into memory: the old one goes first.
    chat.session.close()
    try:
        session = chat.opener(settings)
    except BaseException:
        chat.session = chat.opener(chat.session_settings)
        chat.chat.change_session(chat.session)
        raise
    chat.session, chat.session_settings = session, settings
    chat.settings = replace(chat.settings, strength=None, threshold=None)
    chat.chat.change_session(session)
    chat.say_what_runs()


def _inspect(chat: PlainChat, _argument: str) -> None:
    turn = _last(chat)
    if turn.risk is not None:
        chat.note(f"risk at the end {turn.risk:.2f}; {len(turn.steps)} steps")
    if turn.scores:
        chat.note(f"highest harmful score {max(turn.scores):.2f}")
    for step in turn.interventions:
        proposed = next((c for c in step.candidates if c.token_id == step.proposed_token_id), None)
        before = f"{proposed.text!r} ({proposed.score:.2f})" if proposed else "the proposal"
        chat.note(f"step {step.step}: {before} became {step.text!r} ({step.score or 0:.2f})")
    if not turn.interventions:
        chat.note("nothing was steered")


def _compare(chat: PlainChat, argument: str) -> None:
    if chat.session.info.bundle is None:
        raise InputError("there is no guard to compare with; load a guarded model")
    text = argument or _last(chat).question
    before = list(chat.session.messages)
    if not argument:
        before = before[:-2]
    off = replace(chat.settings, guard="off", strength=None, threshold=None)
    for title, settings in (("GUARD OFF, unchecked", off), (f"guard: {chat.settings.guard}", None)):
        chat.note(f"-- {title}")
        turn, last = ShownTurn(text), chat.last
        chat.answer(turn, ask_aside(chat.chat, turn, before, settings or chat.settings))
        chat.last = last


def _attach(chat: PlainChat, argument: str) -> None:
    path = Path(argument.strip("'\"")).expanduser()
    if not argument:
        raise InputError("name the file: /attach FILE")
    chat.attach([path])
    chat.note(f"attached {path.name}; it goes with the next message")


def _detach(chat: PlainChat, argument: str) -> None:
    if argument == "all":
        chat.attachments.clear()
    elif chat.attachments:
        chat.attachments.pop(int(argument) - 1 if argument.isdecimal() else -1)
    chat.note(f"attached: {', '.join(path.name for path in chat.attachments) or 'nothing'}")


def _system(chat: PlainChat, argument: str) -> None:
    if argument and chat.chat.log is not None:
        raise InputError("a system prompt can only begin a chat; /new begins one")
    chat.system = argument or chat.system
    chat.note(f"system prompt: {chat.system or 'none'}")


def _regenerate(chat: PlainChat, _argument: str) -> None:
    sampling = chat.settings.sampling
    chat.settings = replace(
        chat.settings, sampling=replace(sampling, seed=(sampling.seed + 1) % (2**32 - 1))
    )
    chat.use_settings()
    events = chat.chat.regenerate()
    chat.answer(ShownTurn(_last(chat).question, guard=chat.settings.guard), events)


def _continue(chat: PlainChat, _argument: str) -> None:
    turn = _last(chat)
    chat.use_settings()
    events = chat.chat.continue_answer()
    turn.continued()
    chat.answer(turn, events)


def _edit(chat: PlainChat, argument: str) -> None:
    turns = _turns(chat)
    number = int(argument) if argument.isdecimal() else len(turns)
    if not 1 <= number <= len(turns):
        raise InputError(f"question {argument!r}; expected a number from 1 to {len(turns)}")
    chat.edited = turns[number - 1].question_id
    chat.attachments[:], chat.named = turns[number - 1].files, turns[number - 1].documents
    chat.note(f"the next line takes the place of: {turns[number - 1].question}")


def _fork(chat: PlainChat, argument: str) -> None:
    turns = _turns(chat)
    number = int(argument) if argument.isdecimal() else len(turns)
    if not 1 <= number <= len(turns):
        raise InputError(f"question {argument!r}; expected a number from 1 to {len(turns)}")
    chat.chat.fork(turns[number - 1].answer_id)
    chat.note("this is a copy now; the chat it came from stays as it was")


def _copy(chat: PlainChat, argument: str) -> None:
    text, what = text_to_copy(_turns(chat), argument)
    if not chat.out.isatty():
        raise InputError("there is no terminal to copy with; /export writes a file")
    code = base64.b64encode(text.encode()).decode()
    print(f"\x1b]52;c;{code}\a", end="", file=chat.out, flush=True)
    chat.note(f"copied {what}")


def _rename(chat: PlainChat, argument: str) -> None:
    chat.chat.rename(argument)
    chat.note(f"this chat is called {argument!r}")


def _export(chat: PlainChat, argument: str) -> None:
    from safesteer_edge.tui.commands.exporting import parse_target, write_export

    if chat.chat.log is None:
        raise InputError("there is nothing to export yet; ask something first")
    to, path = parse_target(argument)
    chat.note(f"wrote {write_export(chat.chat.log, chat.chat.media_path, to, path)}")


def _thoughts(chat: PlainChat, _argument: str) -> None:
    chat.note(_last(chat).reasoning.strip() or "the model did not think before its last answer")


def _trace(chat: PlainChat, argument: str) -> None:
    path, n_steps = write_trace(_last(chat), argument)
    chat.note(f"wrote {n_steps} steps to {path}")


def _turns(chat: PlainChat) -> list[ShownTurn]:
    if chat.chat.log is None:
        raise InputError("there is no question yet; ask one first")
    return turns_of_branch(chat.chat.log.branch(), chat.chat.media_path)[1]


def _last(chat: PlainChat) -> ShownTurn:
    if chat.last is None:
        raise InputError("there is no answer yet; ask something first")
    return chat.last


def show_last(chat: PlainChat) -> None:
    """Print the last question and its answer."""
    turns = _turns(chat)
    if turns:
        chat.last = turns[-1]
        chat.note(f"you asked: {turns[-1].question}")
        print(turns[-1].shown, file=chat.out, flush=True)


_HANDLERS: dict[str, Callable[[PlainChat, str], None]] = {
    "help": _help,
    "new": _new,
    "chats": _chats,
    "model": _model,
    "inspect": _inspect,
    "compare": _compare,
    "attach": _attach,
    "detach": _detach,
    "system": _system,
    "regenerate": _regenerate,
    "continue": _continue,
    "edit": _edit,
    "fork": _fork,
    "copy": _copy,
    "rename": _rename,
    "export": _export,
    "trace": _trace,
    "thoughts": _thoughts,
}
