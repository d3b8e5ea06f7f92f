"""One question and its answer, as a user interface sees them grow event by event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safesteer_edge.chat.display_text import ControlCharacterFilter
from safesteer_edge.chat_session import ChatMessage
from safesteer_edge.guard.events import Event, PrefillDone, Refused, Step, TextDelta, TurnEnded
from safesteer_edge.tui.marks import Span, marked, without_marks


@dataclass(slots=True)
class TurnRecord:
    """A turn. Feed it events; read what there is to show.

    text: settled text of the answer as the model wrote it. shown: the same, made safe for a
    terminal, steered passages marked. error: one line, if the turn broke. n_interventions: kept
    apart from the steps, which a chat read from disk does not have.
    """

    question: str
    images: tuple[Path, ...] = ()
    sounds: tuple[Path, ...] = ()
    text: str = ""
    shown: str = ""
    steps: list[Step] = field(default_factory=list)
    prefill: PrefillDone | None = None
    refusal: Refused | None = None
    ended: TurnEnded | None = None
    error: str | None = None
    n_interventions: int = 0
    risk: float | None = None
    model: str = ""
    guard: str = "steer"
    _filter: ControlCharacterFilter = field(default_factory=ControlCharacterFilter)
    _n_step_characters: int = 0
    _steered: list[Span] = field(default_factory=list)

    def feed(self, event: Event) -> str:
        """Take an event; returns what it adds to the text that is shown."""
        if isinstance(event, Step):
            self._count(event)
        elif isinstance(event, PrefillDone):
            self.prefill = event
        elif isinstance(event, TextDelta):
            return self._grow(event.text)
        elif isinstance(event, Refused):
            self.refusal = event
            return self._grow(event.text)
        else:
            self.ended = event
            self.risk = event.guard.risk
        return ""

    @property
    def scores(self) -> list[float]:
        """Harmful scores of the steps so far."""
        return [step.score for step in self.steps if step.score is not None]

    @property
    def interventions(self) -> list[Step]:
        """Steps at which the guard chose another token than the sampler."""
        return [step for step in self.steps if not step.accepted]

    @property
    def is_over(self) -> bool:
        """True once nothing more will come."""
        return self.ended is not None or self.error is not None

    @property
    def was_stopped(self) -> bool:
        """True if the person stopped the answer."""
        return self.ended is not None and self.ended.finish_reason == "cancelled"

    @property
    def was_cut(self) -> bool:
        """True if the answer ended at the token limit."""
        return self.ended is not None and self.ended.finish_reason == "length"

    @property
    def can_continue(self) -> bool:
        """True if there is an unfinished answer to go on with."""
        unfinished = self.was_stopped or self.was_cut or self.error is not None
        return bool(self.text) and unfinished and self.refusal is None

    @property
    def is_in_conversation(self) -> bool:
        """True if the model is to remember it: an answer began."""
        return bool(self.text) or (self.ended is not None and not self.was_stopped)

    def continued(self) -> None:
        """Get ready for the events of `continue_answer`, which add to the answer."""
        self.ended = self.error = None
        self._n_step_characters = len(self.text)  # what was not let through stays unsaid

    def to_messages(self) -> tuple[ChatMessage, ChatMessage]:
        """What a session is restored from."""
        return (
            ChatMessage("user", self.question, self.images, self.sounds),
            ChatMessage("assistant", self.text, risk=self.risk),
        )

    def _count(self, step: Step) -> None:
        self.steps.append(step)
        start = self._n_step_characters
        self._n_step_characters += len(step.text)
        if not step.accepted:
            self.n_interventions += 1
            self._steered.append((start, self._n_step_characters))
        if step.risk is not None:
            self.risk = step.risk

    def _grow(self, text: str) -> str:
        start = len(self.text)
        self.text += text
        spans = [
            (max(0, low - start), min(len(text), high - start))
            for low, high in self._steered
            if low < start + len(text) and high > start
        ]
        added = self._filter.feed(marked(without_marks(text), spans))
        self.shown += added
        return added


def restored_messages(system: str | None, records: Sequence[TurnRecord]) -> list[ChatMessage]:
    """The conversation that these turns make, for `ChatSession.restore`."""
    messages = [ChatMessage("system", system)] if system else []
    for record in records:
        if record.is_in_conversation:
            messages += record.to_messages()
    return messages
