"""The chat that is open: its turns, its settings, and what the next message carries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safesteer_edge.chats.chat_log import ChatEntry
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event
from safesteer_edge.session.protocol import ChatMessage, Document, SessionInfo, TurnSettings
from safesteer_edge.tui.shown_turn import ShownTurn, messages_of

NEW_CHAT_TITLE = "New chat"
_MAX_TITLE = 48


@dataclass(slots=True)
class ChatState:
    """info: what is loaded, None while nothing is. attachments: files for the next message; named:
    documents among them that are copies, with the names that they had.

    edited: the turn that the next message replaces, with all that came after it. chat_id: of its
    file, None before its first question was answered.
    """

    settings: TurnSettings
    turns: list[ShownTurn] = field(default_factory=list)
    system: str | None = None
    title: str = ""
    attachments: list[Path] = field(default_factory=list)
    named: tuple[Document, ...] = ()
    edited: ShownTurn | None = None
    info: SessionInfo | None = None
    chat_id: str | None = None

    @property
    def shown_title(self) -> str:
        """The title, or one made of the first question."""
        if self.title:
            return self.title
        return title_of(self.turns[0].question) if self.turns else NEW_CHAT_TITLE

    def messages_before(self, turn: ShownTurn) -> list[ChatMessage]:
        """The conversation that a turn is asked in."""
        return messages_of(self.system, self.turns[: self.turns.index(turn)])

    def numbered(self, text: str) -> ShownTurn:
        """The turn of that number, counted from 1; the last one if the text is empty."""
        if not self.turns:
            raise InputError("there is no question yet; ask one first")
        if not text:
            return self.turns[-1]
        if not text.isdecimal() or not 1 <= int(text) <= len(self.turns):
            raise InputError(f"question {text!r}; expected a number from 1 to {len(self.turns)}")
        return self.turns[int(text) - 1]

    def recorded_from(self, turn: ShownTurn) -> str | None:
        """The id of the first question from this turn on that the chat's file has, if any.

        What stands in its place is asked by editing it: one that failed left no trace.
        """
        later = self.turns[self.turns.index(turn) :]
        return next((each.question_id for each in later if each.question_id is not None), None)

    def take_ids(self, turn: ShownTurn, branch: Sequence[ChatEntry]) -> None:
        """Note where the chat's file has a turn that has just ended."""
        turn.question_id = turn.answer_id = None
        if len(branch) < 2 or branch[-1].role != "assistant":
            return
        question, answer = branch[-2:]
        is_taken = any(answer.id == each.answer_id for each in self.turns if each is not turn)
        if not is_taken and question.text == turn.question:
            turn.question_id, turn.answer_id = question.id, answer.id


def title_of(question: str) -> str:
    """A title made of a question: its first line, cut between words."""
    lines = question.strip().splitlines()
    first = lines[0] if lines else ""
    if len(first) <= _MAX_TITLE:
        return first or "Attachment"
    return first[:_MAX_TITLE].rsplit(" ", 1)[0] + "…"


def ask(
    chat: RecordedChat,
    turn: ShownTurn,
    settings: TurnSettings,
    *,
    system: str | None,
    in_place_of: str | None,
) -> Iterator[Event]:
    """Ask a question, at the end or in the place of one. On the engine's thread."""
    _use(chat, settings)
    if in_place_of is not None:
        return chat.edit(
            in_place_of,
            turn.question,
            images=turn.images,
            sounds=turn.sounds,
            documents=turn.documents,
        )
    is_first = chat.log is None or not chat.log.branch()
    return chat.ask(
        turn.question,
        images=turn.images,
        sounds=turn.sounds,
        documents=turn.documents,
        system=system if is_first else None,
    )


def check_fits(
    chat: RecordedChat, question: str, *, system: str | None, in_place_of: str | None
) -> None:
    """Raise PromptTooLongError for a question that `ask` could not. On the engine's thread."""
    is_first = chat.log is None or not chat.log.branch()
    chat.check_fits(question, system=system if is_first else None, in_place_of=in_place_of)


def go_on(chat: RecordedChat, settings: TurnSettings) -> Iterator[Event]:
    """Go on with the last answer. On the engine's thread."""
    _use(chat, settings)
    return chat.continue_answer()


def ask_unrecorded(
    chat: RecordedChat, turn: ShownTurn, before: list[ChatMessage], settings: TurnSettings
) -> Iterator[Event]:
    """Ask a question beside the chat, which stays as it was. On the engine's thread."""
    session = chat.session
    messages, usual = session.messages, session.turn_settings
    system = None
    if len(before) == 1:  # a system prompt alone begins with the question
        system, before = before[0].text, []
    try:
        session.change(settings)
        _restore(chat, before)
        yield from session.ask(
            turn.question,
            images=turn.images,
            sounds=turn.sounds,
            documents=turn.documents,
            system=system,
        )
    finally:
        session.change(usual)
        _restore(chat, list(messages))


def _use(chat: RecordedChat, settings: TurnSettings) -> None:
    if chat.session.turn_settings != settings:
        chat.session.change(settings)


def _restore(chat: RecordedChat, messages: list[ChatMessage]) -> None:
    if messages:
        chat.session.restore(messages)
    else:
        chat.session.reset()
