"""The chat that is open: its turns, its settings, and what the next message carries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safesteer_edge.chat_session import ChatMessage, ChatSession, TurnSettings
from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event
from safesteer_edge.session_info import SessionInfo
from safesteer_edge.tui.turn_record import TurnRecord, restored_messages

NEW_CHAT_TITLE = "New chat"
_MAX_TITLE = 48


@dataclass(slots=True)
class ChatState:
    """info: what is loaded, None while nothing is. attachments: files for the next message.

    edited: the turn that the next message replaces, with all that came after it.
    """

    settings: TurnSettings
    records: list[TurnRecord] = field(default_factory=list)
    system: str | None = None
    title: str = ""
    attachments: list[Path] = field(default_factory=list)
    edited: TurnRecord | None = None
    info: SessionInfo | None = None

    @property
    def shown_title(self) -> str:
        """The title, or one made of the first question."""
        if self.title:
            return self.title
        return title_of(self.records[0].question) if self.records else NEW_CHAT_TITLE

    @property
    def running(self) -> TurnRecord | None:
        """The turn that is being answered."""
        last = self.records[-1] if self.records else None
        return last if last is not None and not last.is_over else None

    def messages_before(self, record: TurnRecord) -> list[ChatMessage]:
        """The conversation that a turn is asked in."""
        return restored_messages(self.system, self.records[: self.records.index(record)])

    def numbered(self, text: str) -> TurnRecord:
        """The turn of that number, counted from 1; the last one if the text is empty."""
        if not self.records:
            raise InputError("there is no question yet; ask one first")
        if not text:
            return self.records[-1]
        if not text.isdecimal() or not 1 <= int(text) <= len(self.records):
            raise InputError(f"question {text!r}; expected a number from 1 to {len(self.records)}")
        return self.records[int(text) - 1]


def title_of(question: str) -> str:
    """A title made of a question: its first line, cut between words."""
    lines = question.strip().splitlines()
    first = lines[0] if lines else ""
    if len(first) <= _MAX_TITLE:
        return first or "Picture"
    return first[:_MAX_TITLE].rsplit(" ", 1)[0] + "…"


def ask_turn(
    session: ChatSession,
    record: TurnRecord,
    before: list[ChatMessage],
    settings: TurnSettings,
) -> Iterator[Event]:
    """Bring the session to where a turn is asked, and ask it. On the engine's thread."""
    system = _prepared(session, before, settings)
    return session.ask(record.question, images=record.images, sounds=record.sounds, system=system)


def continue_turn(
    session: ChatSession, messages: list[ChatMessage], settings: TurnSettings
) -> Iterator[Event]:
    """Go on with the last answer of these messages. On the engine's thread."""
    _prepared(session, messages, settings)
    return session.continue_answer()


def _prepared(
    session: ChatSession, messages: list[ChatMessage], settings: TurnSettings
) -> str | None:
    """Returns the system prompt to ask with: a session takes it with its first question."""
    if session.turn_settings != settings:
        session.change(settings)
    system = None
    if len(messages) == 1 and messages[0].role == "system":
        system = messages[0].text
        messages = []
    if [_essence(m) for m in session.messages] != [_essence(m) for m in messages]:
        if messages:
            session.restore(messages)
        else:
            session.reset()
    return system


def _essence(message: ChatMessage) -> tuple[object, ...]:
    return (message.role, message.text, message.images, message.sounds)
