"""One question and its answer, as a user interface sees them grow event by event."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safesteer_edge.chats.chat_log import SUMMARY_QUESTION, ChatEntry
from safesteer_edge.chats.open_chat import files_of
from safesteer_edge.chats.records import EndReason, StoredMedia
from safesteer_edge.formats.display_text import ControlCharacterFilter
from safesteer_edge.guard.events import (
    Candidate,
    Event,
    GuardSummary,
    MediaPrepared,
    PrefillDone,
    Refused,
    Steered,
    Step,
    TextDelta,
    Timings,
    TurnEnded,
    TurnsLeftOut,
    Usage,
)
from safesteer_edge.guard.policy import GuardMode, GuardPolicy
from safesteer_edge.session.protocol import ChatMessage, Document

# -- marks around the steered passages of an answer, which outlive its way through Markdown --------
# Two private-use characters stand around a passage. Model text never holds them: `without_marks`
# comes first. They go round letters alone, so that a mark never breaks what Markdown makes of the
# start of a line, a fence or a list.

OPEN, CLOSE = "\ue000", "\ue001"
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]+)(?:{CLOSE}|$)", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]+(?:[^\S\n]*[^\W\d_]+)*")

Span = tuple[int, int]


def without_marks(text: str) -> str:
    """The text with any such character replaced; of the same length."""
    return _MARKS.sub("\ufffd", text)


def removed_marks(text: str) -> str:
    """The text as it was before it was marked."""
    return _MARKS.sub("", text)


def marked(text: str, spans: Iterable[Span]) -> str:
    """The text with marks around the letters in these spans; they are in order, and apart."""
    parts: list[str] = []
    position = 0
    for start, end in spans:
        found = _LETTERS.search(text, max(start, position), end)
        if found is None:
            continue
        parts += [text[position : found.start()], OPEN, found.group(), CLOSE]
        position = found.end()
    return "".join(parts) + text[position:]


def split_marks(text: str) -> tuple[str, list[Span]]:
    """The text without marks, and the spans that they stood around."""
    spans: list[Span] = []
    for found in _MARKED.finditer(text):
        start = len(removed_marks(text[: found.start()]))
        spans.append((start, start + len(found.group(1))))
    return removed_marks(text), spans


@dataclass(slots=True)
class ShownTurn:
    """A turn. Feed it events; read what there is to show.

    text: settled text of the answer as the model wrote it. reasoning: what a thinking model wrote
    before it. shown: the text, made safe for a terminal, steered passages marked. error: one line,
    if the turn broke. end: None while it is told; 'died' if the program or the engine ended with
    it. steps: of the answer as it stands. n_interventions: kept apart from them, as a chat read
    from disk has none. n_restarts: how often the guard took back what people had not seen yet.
    opening: the safe beginning that it then led the answer to, '' for none.
    left_out: the context was full. policy: the one it was guarded by, None if that is not known.
    is_uncalibrated: it is known that nobody has measured what that policy does. media: what became
    of them. lost: names of files that a stored chat had. question_id, answer_id: in its file.
    language_notice: that the guard was not measured on the question's language, where nothing has
    said so before.
    """

    question: str
    images: tuple[Path, ...] = ()
    sounds: tuple[Path, ...] = ()
    documents: tuple[Document, ...] = ()
    media_names: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    guard: GuardMode = "steer"
    policy: GuardPolicy | None = None
    media: list[MediaPrepared] = field(default_factory=list)
    text: str = ""
    shown: str = ""
    steps: list[Step] = field(default_factory=list)
    left_out: TurnsLeftOut | None = None
    prefill: PrefillDone | None = None
    refusal: Refused | None = None
    end: EndReason | None = None
    error: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    n_interventions: int = 0
    n_restarts: int = 0
    opening: str = ""
    risk: float | None = None
    question_id: str | None = None
    answer_id: str | None = None
    reasoning: str = ""
    is_uncalibrated: bool = False
    language_notice: str = ""
    _filter: ControlCharacterFilter = field(default_factory=ControlCharacterFilter)
    _n_step_characters: int = 0
    _n_hidden_characters: int = 0
    _n_told_characters: int = 0
    _steered: list[Span] = field(default_factory=list)

    def feed(self, event: Event) -> str:
        """Take an event; returns what it adds to the text that is shown."""
        if isinstance(event, Step):
            self._count(event)
        elif isinstance(event, MediaPrepared):
            self.media.append(event)
        elif isinstance(event, PrefillDone):
            self.prefill = event
        elif isinstance(event, TurnsLeftOut):
            self.left_out = event
        elif isinstance(event, TextDelta):
            if event.start is not None:
                self._n_told_characters = event.start + len(event.text)
            if event.part == "reasoning":
                self.reasoning += event.text
                return ""
            if event.start is not None:  # marks and reasoning stand before it, unseen
                self._n_hidden_characters = event.start - len(self.text)
            return self._grow(event.text)
        elif isinstance(event, Steered):
            self._take_back(event.n_tokens_taken_back)
        elif isinstance(event, Refused):
            self.refusal = event
            return self._grow(event.text)
        else:
            self._end(event)
        return ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.images, *self.sounds, *(document.path for document in self.documents))

    @property
    def scores(self) -> list[float]:
        return [step.score for step in self.steps if step.score is not None]

    @property
    def interventions(self) -> list[Step]:
        """Steps at which the guard chose another token than the sampler; openings left out."""
        return [step for step in self.steps if not step.accepted and not step.opening]

    @property
    def is_steered(self) -> bool:
        """True if the guard had a part in the words."""
        return self.n_interventions > 0 or self.n_restarts > 0

    @property
    def asks_for_summary(self) -> bool:
        return self.question == SUMMARY_QUESTION

    @property
    def is_summary(self) -> bool:
        """True if the model has it in place of what came before it."""
        is_told = bool(self.text) and self.end in ("stop", "length", "loop")
        return self.asks_for_summary and is_told

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None

    @property
    def can_continue(self) -> bool:
        """True if there is an unfinished answer to go on with."""
        is_unfinished = self.end in ("cancelled", "length", "loop", "died")
        is_known = bool(self.text) or (bool(self.reasoning) and self.end != "died")
        return is_known and is_unfinished and self.refusal is None

    @property
    def is_in_conversation(self) -> bool:
        """True if the model remembers it: an answer began."""
        has_thought = bool(self.reasoning) and self.end == "cancelled"
        return bool(self.text) or has_thought or self.end in ("stop", "length", "loop", "refused")

    def continued(self) -> None:
        """Get ready for the events of `continue_answer`, which add to the answer."""
        self.end = self.error = None
        # What was not let through stays unsaid.
        n_answer_characters = len(self.text) + self._n_hidden_characters
        self._n_step_characters = max(n_answer_characters, self._n_told_characters)

    def asked_again(self, guard: GuardMode) -> ShownTurn:
        return ShownTurn(
            self.question,
            self.images,
            self.sounds,
            self.documents,
            self.media_names,
            guard=guard,
        )

    def _take_back(self, n_tokens: int) -> None:
        """Forget what the guard took back: it is never shown."""
        start = max(0, len(self.steps) - n_tokens)
        gone = self.steps[start:]
        del self.steps[start:]
        self.n_restarts += 1
        self.opening = ""
        self.n_interventions -= sum(not step.accepted and not step.opening for step in gone)
        self._n_step_characters -= sum(len(step.text) for step in gone)
        self._steered = [span for span in self._steered if span[1] <= self._n_step_characters]

    def _count(self, step: Step) -> None:
        self.steps.append(step)
        start = self._n_step_characters
        self._n_step_characters += len(step.text)
        if step.opening:
            self.opening += step.text
        elif not step.accepted:
            self.n_interventions += 1
        if step.opening or not step.accepted:
            self._steered.append((start, self._n_step_characters))
        if step.risk is not None:
            self.risk = step.risk

    def _end(self, event: TurnEnded) -> None:
        self.end = event.finish_reason
        self._take_summary(event.guard)
        self.usage, self.timings = event.usage, event.timings

    def _take_summary(self, guard: GuardSummary) -> None:
        self.risk, self.n_restarts, self.opening = guard.risk, guard.steered, guard.opening

    def _grow(self, text: str) -> str:
        start = len(self.text) + self._n_hidden_characters
        self.text += text
        spans = [
            (max(0, low - start), min(len(text), high - start))
            for low, high in self._steered
            if low < start + len(text) and high > start
        ]
        added = self._filter.feed(marked(without_marks(text), spans))
        self.shown += added
        return added


def proposed_by_sampler(step: Step) -> Candidate | None:
    """What the guard put something else in the place of; None if that is not known."""
    return next((c for c in step.candidates if c.token_id == step.proposed_token_id), None)


def turns_of_branch(
    branch: Sequence[ChatEntry],
    media_path: Callable[[StoredMedia], Path],
    is_lost: Callable[[StoredMedia], bool],
) -> tuple[str | None, list[ShownTurn]]:
    """The system prompt and the turns that a chat's file tells."""
    system: str | None = None
    turns: list[ShownTurn] = []
    for entry in branch:
        if entry.role == "system":
            system = entry.text
        elif entry.role == "user":
            lost = tuple(item.name for item in entry.media if is_lost(item))
            there = [item for item in entry.media if not is_lost(item)]
            turns.append(
                ShownTurn(
                    entry.text,
                    *files_of(there, media_path),
                    tuple(item.name for item in there),
                    lost=lost,
                    end="died",
                    question_id=entry.id,
                )
            )
        elif turns:
            _answer(turns[-1], entry)
    return system, turns


def messages_of(system: str | None, turns: Sequence[ShownTurn]) -> list[ChatMessage]:
    """The conversation that these turns make, for `ChatSession.restore`."""
    messages = [ChatMessage("system", system)] if system and turns else []
    start = max((index for index, turn in enumerate(turns) if turn.is_summary), default=0)
    for turn in turns[start:]:
        if turn.is_in_conversation:
            messages += (
                ChatMessage("user", turn.question, turn.images, turn.sounds, turn.documents),
                ChatMessage("assistant", turn.text, risk=turn.risk),
            )
    return messages


def _answer(turn: ShownTurn, entry: ChatEntry) -> None:
    turn.answer_id = entry.id
    turn.text, turn.reasoning = entry.text, entry.reasoning
    turn.shown = ControlCharacterFilter().feed(without_marks(entry.text))
    end = entry.end
    if end is None:
        return
    turn.end, turn.refusal, turn.usage = end.reason, end.refusal, end.usage
    if end.guard is not None:
        turn.guard = end.guard.mode
        turn.n_interventions = end.guard.interventions
        turn._take_summary(end.guard)  # pyright: ignore[reportPrivateUsage]  # of this file
