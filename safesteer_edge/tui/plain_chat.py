"""The chat of lines: for pipes, screen readers, and terminals that a full screen does not fit.

stdout is what the model says, stderr everything else; nothing moves the cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Protocol

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import BundleChangedError, EngineDiedError, SafeSteerError
from safesteer_edge.formats.display_text import ControlCharacterFilter, strip_control_characters
from safesteer_edge.guard.events import Event, Refused, TextDelta
from safesteer_edge.session.protocol import ChatSession, Document, TurnSettings, interrupt_cancels
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.templates.reasoning import thought_label
from safesteer_edge.tui.attached_files import check_attachable
from safesteer_edge.tui.guard_words import (
    MODE_MEANINGS,
    UNCALIBRATED,
    UNCALIBRATED_MEANING,
    is_uncalibrated,
    turn_figures,
    turn_notes,
)
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.slash_commands import parse_command
from safesteer_edge.tui.typed_paths import require_files, sorted_by_kind, split_media_paths


class Lines(Protocol):
    """Where messages come from, such as stdin."""

    def isatty(self) -> bool:
        """Whether a person types them."""
        ...

    def readline(self) -> str:
        """The next line with its end; '': there are no more."""
        ...


class PlainChat:
    """Reads lines, answers them, obeys commands. Make it with an open session; `run` it."""

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
        self.opener = opener
        self.session_settings = settings
        self.session = opener(settings)
        self.store = store
        self.chat = RecordedChat(self.session, store, on_problem=self._tell_unsaved)
        self.settings = TurnSettings.of(settings)
        self.attachments: list[Path] = []
        self.named: tuple[Document, ...] = ()  # those among them that are copies
        self.system: str | None = None
        self.edited: str | None = None
        self.last: ShownTurn | None = None
        self.failed = False
        self._lines, self.out, self.notes = lines, out, notes

    @property
    def is_typed(self) -> bool:
        """Whether a person types the lines."""
        return self._lines.isatty()

    def resume(self, chat_id: str) -> None:
        """Go on with a saved chat, and show how it ended. Raises ChatFileError."""
        from safesteer_edge.tui.plain_commands import show_last

        self.chat.resume(chat_id)
        show_last(self)

    def run(self, question: str = "") -> None:
        """Chat until the lines end, `/quit`, or the guard is not the one that it began with."""
        self.say_what_runs()
        text: str | None = question or self._read()
        while text is not None:
            try:
                if not self._obey(strip_control_characters(text)):  # of a pasted log's colours
                    return
            except SafeSteerError as error:
                self.failed = True
                self.note(str(error))
                if isinstance(error, BundleChangedError):
                    return
            text = self._read()

    def close(self) -> None:
        """Write what waits, free the model."""
        self.chat.close()
        self.session.close()

    def note(self, text: str) -> None:
        """Say something that is not the model's."""
        print(strip_control_characters(text), file=self.notes, flush=True)

    def say_what_runs(self) -> None:
        """Model and guard, in a line; a weak mode in a line of its own."""
        info, mode = self.session.info, self.settings.guard
        self.note(f"{info.model_name} {info.quantization}, guard: {mode}; /help lists commands")
        if mode in ("monitor", "off"):
            self.note(f"{mode.upper()}: {MODE_MEANINGS[mode]}")
        if is_uncalibrated(info, mode):
            self.note(f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}")

    def ask(self, text: str) -> None:
        """Ask with what is attached, in the place of an edited question if there is one."""
        images, sounds, documents = sorted_by_kind(self.attachments, self.named)
        self.attachments.clear()
        edited, self.edited = self.edited, None
        self.use_settings()
        if edited is not None:
            events = self.chat.edit(edited, text, images=images, sounds=sounds, documents=documents)
        else:
            is_first = self.chat.log is None or not self.chat.log.branch()
            system = self.system if is_first else None
            events = self.chat.ask(
                text, images=images, sounds=sounds, documents=documents, system=system
            )
        self.answer(ShownTurn(text, images, sounds, documents, guard=self.settings.guard), events)

    def attach(self, paths: Sequence[Path]) -> None:
        """Let files go with the next message. Raises MediaError at the first that cannot."""
        for path in paths:
            check_attachable(path, self.session.info)
        self.attachments += paths

    def answer(self, turn: ShownTurn, events: Iterable[Event]) -> None:
        """Print an answer as it comes; Ctrl+C stops it between two tokens."""
        shown = ControlCharacterFilter()
        self.last = turn
        turn.is_uncalibrated = is_uncalibrated(self.session.info, turn.guard)
        try:
            with interrupt_cancels(self.session):
                for event in events:
                    if isinstance(event, TextDelta) and event.part == "reasoning":
                        if not turn.reasoning:
                            self.note("thinking …")
                        turn.feed(event)
                        continue
                    if isinstance(event, TextDelta | Refused) and turn.reasoning and not turn.text:
                        self.note(f"[{thought_label(turn.reasoning)}; /thoughts shows them]")
                    turn.feed(event)
                    if isinstance(event, TextDelta | Refused):
                        print(shown.feed(event.text), end="", file=self.out, flush=True)
        except EngineDiedError as error:
            turn.error = str(error)
        if turn.text:
            print(file=self.out, flush=True)
        self._tell_end(turn)

    def use_settings(self) -> None:
        """Let the session have the settings of the next answer."""
        if self.session.turn_settings != self.settings:
            self.session.change(self.settings)

    def _tell_end(self, turn: ShownTurn) -> None:
        parts = turn_notes(turn)
        if turn.refusal is not None:
            parts.append(f"refused by the guard: {turn.refusal.detail}")
        if turn.error is not None:
            parts.append(turn.error)
        if figures := turn_figures(turn, self.session.info.n_ctx):
            parts.append(figures)
        self.note(f"[{' · '.join(parts)}]")

    def _obey(self, text: str) -> bool:
        """Ask or do what was typed; False: leave."""
        from safesteer_edge.tui.plain_commands import run_command

        command = parse_command(text)
        if command is not None:
            return run_command(self, command[0].name, command[1])
        rest, paths = split_media_paths(text, typed=True)
        require_files(paths)
        self.attach(paths)
        if paths and not rest.strip():
            self.note(f"attached {', '.join(path.name for path in paths)}; now ask about it")
        elif rest.strip() or self.attachments:
            self.ask(rest.strip())
        return True

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
            self.note("Ctrl+D or /quit leaves")
            return ""

    def _tell_unsaved(self, problem: str) -> None:
        self.note(f"this chat is not saved: {problem}")


def run_plain_chat(chat: PlainChat, chat_id: str | None, question: str) -> bool:
    """Chat until its lines end, and close it. False if something failed.

    chat_id: of a saved chat to go on with. question: asked first, unless empty. Raises what
    reading the lines does, and ChatFileError.
    """
    try:
        if chat_id is not None:
            chat.resume(chat_id)
        chat.run(question)
    finally:
        chat.close()
    return not chat.failed or chat.is_typed  # a person has read what failed
