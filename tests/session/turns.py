"""One turn of a session, with its events sorted by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesteer_edge.guard.events import (
    Event,
    MediaPrepared,
    PrefillDone,
    Refused,
    Step,
    TextDelta,
    TurnEnded,
    TurnsLeftOut,
)
from safesteer_edge.session.session import Session, open_session
from tests.guarded_tiny import GuardedTiny


@dataclass(frozen=True, slots=True)
class Turn:
    """events: all of them, in order. media: what became of each. shown: what a person read.

    left_out: None where the prompt had all turns.
    """

    events: tuple[Event, ...]
    media: tuple[MediaPrepared, ...]
    prefill: PrefillDone
    ended: TurnEnded
    steps: tuple[Step, ...]
    shown: str
    left_out: TurnsLeftOut | None = None

    @property
    def text(self) -> str:
        return self.ended.text

    @property
    def scores(self) -> list[float]:
        return [step.score for step in self.steps if step.score is not None]


def ask(session: Session, text: str, **options: Any) -> Turn:
    """Ask, and check what is true of every turn."""
    events = tuple(session.ask(text, **options))
    media = tuple(event for event in events if isinstance(event, MediaPrepared))
    assert events[: len(media)] == media  # they come first
    rest = list(events[len(media) :])
    left_out = rest[0] if isinstance(rest[0], TurnsLeftOut) else None
    prefill, *middle, ended = rest[1:] if left_out else rest
    assert isinstance(prefill, PrefillDone)
    assert isinstance(ended, TurnEnded)
    assert all(isinstance(event, Step | TextDelta | Refused) for event in middle)
    shown = "".join(event.text for event in middle if isinstance(event, TextDelta | Refused))
    assert shown == ended.text
    steps = tuple(event for event in middle if isinstance(event, Step))
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert ended.usage.completion_tokens == len(steps)
    return Turn(events, media, prefill, ended, steps, shown, left_out)


@contextmanager
def opened(tiny: GuardedTiny, bundle: Path | None, **changes: Any) -> Iterator[Session]:
    """A session on the tiny model; changes: to `GuardedTiny.settings`."""
    with open_session(tiny.settings(bundle, **changes)) as session:
        yield session


def texts(tiny: GuardedTiny, bundle: Path | None, prompts: Sequence[str], **changes: Any):
    """The answers to prompts that each begin a conversation."""
    with opened(tiny, bundle, **changes) as session:
        answers: list[str] = []
        for prompt in prompts:
            session.reset()
            answers.append(ask(session, prompt).text)
    return answers
