"""Lazy ≡ eager on the real engine: the same tokens at temperature 0, or a reason why not.

One token and k tokens run in different kernels, so a state and its score differ a little between
the two. The noise is measured on tokens that both forms emitted from the same prefix: the largest
difference of a token's guarded value, log p − penalty. A first difference in the token sequence is
explained if eager's values of the two tokens lie within twice that noise (one for each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from safesteer_edge.guard.events import Step
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.reranking import Tilt
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.session import Session


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which the forms chose differently. gap: of eager's two guarded values."""

    request_id: str
    step: int
    gap: float


@dataclass(frozen=True, slots=True)
class RerankEquality:
    """noise: nats, the largest difference of one token's guarded value between the forms."""

    n_prompts: int
    n_identical: int
    n_steps_compared: int
    n_interventions: int
    noise: float
    divergences: tuple[Divergence, ...]

    @property
    def unexplained(self) -> tuple[Divergence, ...]:
        """Divergences wider than the noise: there must be none."""
        # Written so that a NaN counts.
        return tuple(item for item in self.divergences if not item.gap <= 2 * self.noise)


def compare_lazy_with_eager(
    requests: Iterable[Request],
    lazy: Session,
    eager: Session,
    policy: GuardPolicy,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> RerankEquality:
    """Ask every request in both sessions (temperature 0) and compare step by step."""
    n_prompts = n_identical = n_steps = n_interventions = 0
    noise = 0.0
    divergences: list[Divergence] = []
    for request in requests:
        lazy_steps, eager_steps = _steps(lazy, request), _steps(eager, request)
        n_prompts += 1
        n_interventions += sum(not step.accepted for step in lazy_steps)
        risk = 0.0
        for one, other in zip(lazy_steps, eager_steps, strict=False):
            tilt = Tilt(policy.strength * (1.0 + policy.risk_gain * risk), policy.threshold)
            if one.token_id != other.token_id:
                divergences.append(Divergence(request.id, one.step, _gap(other, one, tilt)))
                break
            # Not max(), which may drop a NaN.
            noise = float(np.maximum(noise, abs(_value(one, tilt) - _value(other, tilt))))
            n_steps += 1
            risk = other.risk or 0.0
        else:
            if len(lazy_steps) == len(eager_steps):
                n_identical += 1
            else:  # one refused where the other went on: no guarded value explains that
                ended = min(len(lazy_steps), len(eager_steps))
                divergences.append(Divergence(request.id, ended, float("inf")))
        progress(n_prompts)
    return RerankEquality(
        n_prompts, n_identical, n_steps, n_interventions, noise, tuple(divergences)
    )


def _steps(session: Session, request: Request) -> list[Step]:
    session.reset()
    return [event for event in session.ask(request.text) if isinstance(event, Step)]


def _value(step: Step, tilt: Tilt) -> float:
    return _guarded(step.logprob, step.score or 0.0, tilt)


def _gap(eager: Step, lazy: Step, tilt: Tilt) -> float:
    """How far apart eager saw its own choice and lazy's; infinite if it never saw lazy's."""
    for candidate in eager.candidates:
        if candidate.token_id == lazy.token_id:
            return abs(_value(eager, tilt) - _guarded(candidate.logprob, candidate.score, tilt))
    return float("inf")


def _guarded(logprob: float, score: float, tilt: Tilt) -> float:
    return logprob - tilt.strength * max(0.0, score - tilt.threshold)
