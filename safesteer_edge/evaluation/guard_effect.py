"""What the guard changes: the same requests, greedy, with it and without it.

A text counts as refused if the guard ended the turn, or if `refusal_rules` finds a refusal in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from safesteer_edge.calibration.requests_data import Label, Request
from safesteer_edge.evaluation.refusal_rules import is_refusal
from safesteer_edge.evaluation.statistics import Share
from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.session import Session


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer. passes: forward passes of its decoding steps."""

    text: str
    refused: bool
    n_tokens: int
    passes: int
    decode_s: float
    interventions: int


@dataclass(frozen=True, slots=True)
class PairedOutcome:
    """The same request without the guard and with it."""

    request: Request
    off: Outcome
    guarded: Outcome

    @property
    def is_identical(self) -> bool:
        """The guard changed no byte of the answer."""
        return self.off.text == self.guarded.text


@dataclass(frozen=True, slots=True)
class GuardEffect:
    """Figures of one label. *_answered: neither refused by the model nor by the guard."""

    label: Label
    identical: Share
    off_answered: Share
    guarded_answered: Share
    passes_per_token: float
    speed_ratio: float


def compare_with_off(
    requests: Iterable[Request],
    off: Session,
    guarded: Session,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[PairedOutcome]:
    """Ask every request in both sessions, turn about, each in a new conversation."""
    outcomes: list[PairedOutcome] = []
    for n_done, request in enumerate(requests, start=1):
        outcomes.append(PairedOutcome(request, _ask(off, request), _ask(guarded, request)))
        progress(n_done)
    return outcomes


def summarise(outcomes: Sequence[PairedOutcome], label: Label) -> GuardEffect:
    """The figures of the requests with this label."""
    rows = [row for row in outcomes if row.request.label == label]
    n = len(rows)
    same = [row for row in rows if row.is_identical]  # speed is compared over equal work only
    return GuardEffect(
        label=label,
        identical=Share(len(same), n),
        off_answered=Share(sum(not row.off.refused for row in rows), n),
        guarded_answered=Share(sum(not row.guarded.refused for row in rows), n),
        passes_per_token=_ratio(
            sum(row.guarded.passes for row in rows), sum(row.guarded.n_tokens for row in rows)
        ),
        speed_ratio=_ratio(
            sum(row.off.decode_s for row in same), sum(row.guarded.decode_s for row in same)
        ),
    )


def _ask(session: Session, request: Request) -> Outcome:
    session.reset()
    *_, ended = session.ask(request.text)
    if not isinstance(ended, TurnEnded):
        raise TypeError(f"a turn ended with {type(ended).__name__}")
    return Outcome(
        text=ended.text,
        refused=ended.finish_reason == "refused" or is_refusal(ended.text),
        n_tokens=ended.usage.completion_tokens,
        passes=ended.usage.forward_passes,
        decode_s=ended.timings.decode_s,
        interventions=ended.guard.interventions,
    )


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")
