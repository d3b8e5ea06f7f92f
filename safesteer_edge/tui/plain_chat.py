"""The chat of lines: for pipes, screen readers, and terminals that a full screen does not fit.

stdout is what the model says, stderr everything else; nothing moves the cursor.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import BundleChangedError, EngineDiedError, InputError, SafeSteerError
from safesteer_edge.formats.display_text import ControlCharacterFilter, strip_control_characters
from safesteer_edge.guard.events import Event, Refused, TextDelta
from safesteer_edge.session.protocol import ChatSession, TurnSettings, interrupt_cancels
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.templates.reasoning import thought_label
from safesteer_edge.tui.attached_files import check_attachable, require_files, split_media_paths
from safesteer_edge.tui.chat_state import ChatState, ask, go_on
from safesteer_edge.tui.commands import conversation
from safesteer_edge.tui.commands.table import parse_command
from safesteer_edge.tui.guard_words import (
    MODE_MEANINGS,
    UNCALIBRATED,
    UNCALIBRATED_MEANING,
    is_uncalibrated,
    turn_figures,
    turn_notes,
)
from safesteer_edge.tui.shown_turn import ShownTurn

_Result = TypeVar("_Result")


class Lines(Protocol):
    """Where messages come from, such as stdin."""

    def isatty(self) -> bool:
        """Whether a person types them."""
        ...

    def readline(self) -> str:
        """The next line with its end; '': there are no more."""
        ...


class PlainChat:
    """Reads lines, answers them, obeys commands. Make it with an open session; `run` it.

    What is `async` is so for the commands that the full screen shares: nothing here waits.
    """

    def __init__(
        self,
        opener: Callable[[SessionSettings], ChatSession],
        settings: SessionSettings,
        store: ChatStore | None,
        *,
        lines: Lines,
        out: IO[str],
        notes: IO[str],
    ) -> None:
        """Opens the session. lines: what is typed. out: what the model says. notes: the rest."""
        self._opener = opener
        self.session_settings = settings
        self._session = opener(settings)
        self.store = store
        self.chat = RecordedChat(
            self._session,
            store,
            on_problem=lambda problem: self.say(f"this chat is not being saved: {problem}"),
        )
        self.state = ChatState(TurnSettings.of(settings), info=self._session.info)
        self.failed = self.is_over = False
        self._lines, self.out, self._notes = lines, out, notes

    @property
    def is_typed(self) -> bool:
        """Whether a person types the lines."""
        return self._lines.isatty()

    async def resume(self, chat_id: str) -> None:
        """Go on with a saved chat, and show how it ended. Raises ChatFileError."""
        await conversation.resume(self, chat_id)
        for turn in self.state.turns[-1:]:
            self.say(f"you asked: {turn.question}")
            print(turn.shown, file=self.out, flush=True)

    def run(self, question: str = "") -> None:
        """Chat until the lines end, `/quit`, or the guard is not the one that it began with."""
        self.say_what_runs()
        text: str | None = question or self._read()
        while text is not None:
            try:
                _finish(self._obey(strip_control_characters(text)))  # of a pasted log's colours
            except SafeSteerError as error:
                self.failed = True
                self.say(str(error))
                self.is_over = isinstance(error, BundleChangedError)
            text = None if self.is_over else self._read()

    def close(self) -> None:
        self.chat.close()
        self._session.close()

    def load(self, settings: SessionSettings) -> None:
        """Go on with another model; with the present one if that cannot be loaded."""
        self._session.close()  # first: two models may not fit into memory
        try:
            session = self._opener(settings)
        except BaseException:
            self._session = self._opener(self.session_settings)
            self.chat.change_session(self._session)
            raise
        self._session, self.session_settings = session, settings
        self.state.info = session.info
        self.chat.change_session(session)

    def say_what_runs(self) -> None:
        """Model and guard, in a line; a weak mode in a line of its own."""
        info, mode = self._session.info, self.state.settings.guard
        self.say(f"{info.model_name} {info.quantization}, guard: {mode}; /help lists commands")
        if mode in ("monitor", "off"):
            self.say(f"{mode.upper()}: {MODE_MEANINGS[mode]}")
        if is_uncalibrated(info, mode):
            self.say(f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}")

    def answer(self, turn: ShownTurn, events: Iterable[Event]) -> None:
        """Print an answer as it comes; Ctrl+C stops it between two tokens."""
        shown = ControlCharacterFilter()
        self.state.info = self._session.info  # which a restart may have changed
        turn.is_uncalibrated = is_uncalibrated(self.state.info, turn.guard)
        turn.policy = self.state.policy_with(self.state.settings)
        try:
            with interrupt_cancels(self._session):
                for event in events:
                    is_thought = isinstance(event, TextDelta) and event.part == "reasoning"
                    if is_thought and not turn.reasoning:
                        self.say("thinking …")
                    is_said = isinstance(event, TextDelta | Refused) and not is_thought
                    if is_said and turn.reasoning and not turn.text:
                        self.say(f"[{thought_label(turn.reasoning)}; /thoughts shows them]")
                    turn.feed(event)
                    if isinstance(event, TextDelta | Refused) and is_said:
                        print(shown.feed(event.text), end="", file=self.out, flush=True)
        except SafeSteerError as error:
            turn.error, turn.end = str(error), "died"
            if not isinstance(error, EngineDiedError):  # after which the next question works
                raise
        if turn.text:
            print(file=self.out, flush=True)
        self._tell_end(turn)

    # -- what commands ask of a chat --------------------------------------------------------------

    def say(self, text: str) -> None:
        print(strip_control_characters(text), file=self._notes, flush=True)

    def refuse_while_answering(self) -> None:
        """Nothing is typed meanwhile."""

    def show_state(self) -> None:
        """There is nothing around the turns."""

    async def show_chat(self) -> None:
        """What was printed stays where it is."""

    async def show_attachments(self) -> None:
        """Their commands say it."""

    async def attach(self, paths: Sequence[Path]) -> None:
        for path in paths:
            check_attachable(path, self.state.info)
        self.state.attachments += paths

    def put_back(self, question: str) -> None:
        self.say(f"your next line replaces this question: {question}")

    def copy_to_clipboard(self, text: str) -> None:
        """Copy by OSC 52, if a terminal is there to do it."""
        if not self.out.isatty():
            raise InputError("copying needs a terminal; use /export to write a file")
        code = base64.b64encode(text.encode()).decode()
        print(f"\x1b]52;c;{code}\a", end="", file=self.out, flush=True)

    async def do(self, work: Callable[[RecordedChat], _Result]) -> _Result:
        return work(self.chat)

    async def run_turn(self, turn: ShownTurn, *, in_place_of: str | None) -> None:
        state = self.state
        state.turns.append(turn)
        self._record(
            turn,
            ask(
                self.chat,
                turn,
                state.settings,
                system=state.system,
                in_place_of=in_place_of,
                is_language_told=state.is_language_told,
            ),
        )

    async def go_on(self, turn: ShownTurn) -> None:
        turn.continued()
        self._record(turn, go_on(self.chat, self.state.settings))

    # -- private ----------------------------------------------------------------------------------

    def _record(self, turn: ShownTurn, events: Iterable[Event]) -> None:
        try:
            self.answer(turn, events)
        finally:
            if self.chat.log is not None:
                self.state.take_ids(turn, self.chat.log.branch())

    def _tell_end(self, turn: ShownTurn) -> None:
        parts = turn_notes(turn)
        if turn.refusal is not None:
            parts.append(f"refused by the guard: {turn.refusal.detail}")
        if turn.error is not None:
            parts.append(turn.error)
        if figures := turn_figures(turn, self._session.info.n_ctx):
            parts.append(figures)
        self.say(f"[{' · '.join(parts)}]")
        if turn.language_notice:
            self.say(f"[{turn.language_notice}]")

    async def _obey(self, text: str) -> None:
        command, argument = parse_command(text) or (None, "")
        if command is not None:
            if command.run_plain is None:
                raise InputError(
                    f"/{command.name} works only in the full-screen chat; use 'safesteer-edge "
                    "settings', or the option --model"
                )
            await command.run_plain(self, argument)
            return
        rest, paths = split_media_paths(text, typed=True)
        require_files(paths)
        await self.attach(paths)
        if paths and not rest.strip():
            self.say(f"attached {', '.join(path.name for path in paths)}; now ask about it")
        elif rest.strip() or self.state.attachments:
            await conversation.send(self, rest.strip())

    def _read(self) -> str | None:
        r"""The next message: lines that end in \ go on in the next one. None: there are no more."""
        parts: list[str] = []
        while True:
            line = self._read_line("> " if not parts else ". ")
            if line is None:
                return "\n".join(parts) if parts else None
            if not line.endswith("\\"):
                return "\n".join([*parts, line])
            parts.append(line[:-1])

    def _read_line(self, prompt: str) -> str | None:
        if not self._lines.isatty():
            line = self._lines.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            self.say("press Ctrl+D or type /quit to leave")
            return ""


def run_plain_chat(chat: PlainChat, chat_id: str | None, question: str) -> bool:
    """Chat until its lines end, and close it. False if something failed.

    chat_id: of a saved chat to go on with. question: asked first, unless empty. Raises what
    reading the lines does, and ChatFileError.
    """
    try:
        if chat_id is not None:
            _finish(chat.resume(chat_id))
        chat.run(question)
    finally:
        chat.close()
    return not chat.failed or chat.is_typed  # a person has read what failed


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run what never waits. No event loop: that would keep Ctrl+C from what blocks."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("a command of the chat of lines waits for something")
