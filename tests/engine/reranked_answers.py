"""Answers of the real engine under lazy and eager re-ranking, and how they compare.

A token's state comes from a batch of one in lazy re-ranking and of all candidates in eager, and
its cell lies elsewhere in the cache, so that sums are taken in another order. What that does to
the guarded value log p − λ·max(0, s − τ) is measured on the tokens that both emitted; two
candidates nearer to each other than this may change places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safesteer_edge.guard.decoding import GuardedAnswer
from safesteer_edge.guard.events import Candidate, Step
from safesteer_edge.guard.policy import GuardPolicy, RerankName, SamplingSettings
from safesteer_edge.guard.transcript import ActiveGuard, DecodingLimits
from tests.engine.open_engine import N_EMBD, Float32Array, OpenEngine

LAYERS = (1, 2)
TOP_K = 8
N_TOKENS = 14
# Refusals are out of reach, and λ stays the same: re-ranking alone is tested.
POLICY = GuardPolicy(
    strength=6.0,
    threshold=0.5,
    hard_threshold=1.0,
    hard_patience=1024,
    risk_limit=1.0,
    risk_decay=0.9,
    risk_min_steps=1024,
    risk_gain=0.0,
    conversation_carry=0.0,
)


class LinearProbe:
    """Half of the tiny model's states score above the threshold: it intervenes at many steps."""

    n_features = len(LAYERS) * N_EMBD

    def __init__(self) -> None:
        weights = np.random.default_rng(0).standard_normal(self.n_features)
        self._weights = weights / np.linalg.norm(weights)

    def score(self, hidden: Float32Array) -> Float32Array:
        return (0.5 + 0.5 * np.tanh(hidden @ self._weights / 2)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, its steps, and how often the guard stepped in."""

    token_ids: tuple[int, ...]
    steps: list[Step]
    n_interventions: int
    n_evaluated: int


def answer(
    opened: OpenEngine, prompt: list[int], rerank: RerankName, sampling: SamplingSettings
) -> Answered:
    opened.prefill(prompt, sampling=sampling)
    guarded = GuardedAnswer(
        opened.engine,
        ActiveGuard("steer", rerank, POLICY, LinearProbe(), refusal_text="no"),
        DecodingLimits(N_TOKENS, n_spare=TOP_K + 1),
        tokenize_plain=opened.model.tokenize_plain,
        rng=np.random.default_rng(sampling.seed),
    )
    steps = [event for event in guarded.events() if isinstance(event, Step)]
    return Answered(
        guarded.token_ids, steps, guarded.n_interventions, guarded.n_evaluated_candidates
    )


def value(item: Step | Candidate) -> float:
    """The guarded value log p − λ·max(0, s − τ)."""
    assert item.score is not None
    return item.logprob - POLICY.strength * max(0.0, item.score - POLICY.threshold)


@dataclass(slots=True)
class Comparison:
    """noise: the largest |Δ value| of a token that both emitted after the same ones.

    gaps: at each first difference, how far apart the two best candidates were.
    """

    noise: float = 0.0
    n_same: int = 0
    n_interventions: int = 0
    n_evaluated_lazily: int = 0
    n_evaluated_eagerly: int = 0
    gaps: list[float] | None = None

    def add_inplace(self, lazy: Answered, eager: Answered) -> None:
        self.n_interventions += lazy.n_interventions
        self.n_evaluated_lazily += lazy.n_evaluated
        self.n_evaluated_eagerly += eager.n_evaluated
        self.gaps = self.gaps or []
        for lazy_step, eager_step in zip(lazy.steps, eager.steps, strict=False):
            if lazy_step.token_id != eager_step.token_id:
                second, best = sorted(value(item) for item in eager_step.candidates)[-2:]
                self.gaps.append(best - second)
                return
            self.noise = max(self.noise, abs(value(lazy_step) - value(eager_step)))
        assert lazy.token_ids == eager.token_ids
        self.n_same += 1
