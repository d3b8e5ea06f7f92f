"""The chat that is open: its turns, its settings, what the next message carries, how it asks.

What takes a `RecordedChat` runs on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safesteer_edge.chats.chat_log import ChatEntry, ChatLog
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event
from safesteer_edge.guard.policy import GuardMode, GuardPolicy
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
    def is_language_told(self) -> bool:
        return any(turn.language_notice for turn in self.turns)

    @property
    def shown_title(self) -> str:
        """The title, or the first line of the first question, cut between words."""
        if self.title or not self.turns:
            return self.title or NEW_CHAT_TITLE
        first, *_ = self.turns[0].question.strip().splitlines() or [""]
        if len(first) <= _MAX_TITLE:
            return first or "Attachment"
        return first[:_MAX_TITLE].rsplit(" ", 1)[0] + "…"

    def policy_with(self, settings: TurnSettings) -> GuardPolicy | None:
        """What guards an answer of these settings; None: that is not known."""
        if self.info is None or self.info.policy is None:
            return None
        return self.info.policy.tightened(strength=settings.strength, threshold=settings.threshold)

    def numbered(self, text: str) -> ShownTurn:
        """The turn of that number, counted from 1; the last one if the text is empty."""
        if not self.turns:
            raise InputError("there is no answer yet; ask something first")
        if not text:
            return self.turns[-1]
        if not text.isdecimal() or not 1 <= int(text[:9]) <= len(self.turns):
            raise InputError(f"there is no question {text!r}; choose 1 to {len(self.turns)}")
        return self.turns[int(text[:9]) - 1]

    def begin_new(self) -> None:
        """Forget the chat; its settings stay."""
        self.turns.clear()
        self.title, self.chat_id = "", None
        self.edited = self.system = None
        self.attachments.clear()

    def enter(self, log: ChatLog, system: str | None, turns: Sequence[ShownTurn]) -> None:
        """Hold a chat that was read from its file."""
        self.begin_new()
        self.system, self.turns[:] = system, turns
        self.title, self.chat_id = log.title, log.header.id

    def carry_files_of(self, turn: ShownTurn) -> None:
        """Let the next message have the files of one that was asked."""
        self.attachments[:], self.named = turn.files, turn.documents

    def cut_from(self, turn: ShownTurn) -> str | None:
        """Take a turn and what follows it away; returns the question that they are in the file."""
        recorded = self.recorded_from(turn)
        del self.turns[self.turns.index(turn) :]
        return recorded

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

    def to_compare(self, question: str) -> tuple[ShownTurn, list[ChatMessage]]:
        """A question, or the last one again, and the conversation that it is asked in."""
        if self.info is None or self.info.bundle is None:
            raise InputError("there is no guard to compare with; choose a model that has one")
        turn = ShownTurn(question) if question else self.numbered("")
        before = self.turns if question else self.turns[:-1]
        return turn, messages_of(self.system, before)


def compared_settings(settings: TurnSettings) -> tuple[TurnSettings, TurnSettings]:
    """Of the two answers of a comparison: without the guard, and with it."""
    guarded: GuardMode = "steer" if settings.guard in ("off", "monitor") else settings.guard
    off = replace(settings, guard="off", strength=None, threshold=None)
    return off, replace(settings, guard=guarded)


def ask(
    chat: RecordedChat,
    turn: ShownTurn,
    settings: TurnSettings,
    *,
    system: str | None,
    in_place_of: str | None,
    is_language_told: bool,
) -> Iterator[Event]:
    """Ask a question, at the end or in the place of one.

    is_language_told: the chat has a notice of that already.
    """
    _use(chat, settings)
    if turn.asks_for_summary and in_place_of is None:
        return chat.sum_up()
    if in_place_of is not None:
        events = chat.edit(
            in_place_of,
            turn.question,
            images=turn.images,
            sounds=turn.sounds,
            documents=turn.documents,
        )
    else:
        events = chat.ask(
            turn.question,
            images=turn.images,
            sounds=turn.sounds,
            documents=turn.documents,
            system=system_of_first(chat, system),
        )
    return events if is_language_told else _noting_language(events, turn, chat)


def go_on(chat: RecordedChat, settings: TurnSettings) -> Iterator[Event]:
    _use(chat, settings)
    return chat.continue_answer()


def ask_unrecorded(
    chat: RecordedChat, turn: ShownTurn, before: list[ChatMessage], settings: TurnSettings
) -> Iterator[Event]:
    """Ask a question in another conversation than the chat's, which stays as it was."""
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


def _noting_language(
    events: Iterator[Event], turn: ShownTurn, chat: RecordedChat
) -> Iterator[Event]:
    """The events; then, when nobody waits for the first text any more, the turn's language."""
    yield from events
    # Deferred: no chat needs it to begin.
    from safesteer_edge.session.language import language_notice

    turn.language_notice = language_notice(turn.question, chat.session.info.languages)


def _use(chat: RecordedChat, settings: TurnSettings) -> None:
    if chat.session.turn_settings != settings:
        chat.session.change(settings)


def system_of_first(chat: RecordedChat, system: str | None) -> str | None:
    """The system prompt, if the next question is the first."""
    return system if chat.log is None or not chat.log.branch() else None


def _restore(chat: RecordedChat, messages: list[ChatMessage]) -> None:
    if messages:
        chat.session.restore(messages)
    else:
        chat.session.reset()
