"""Re-ranking: choosing one candidate of a decoding step by the guarded distribution q.

`lazy` and `eager` draw from the same q = `Tilt.guarded_probs` (at temperature 0: its argmax).
Eager scores every candidate at every step. Lazy scores the sampler's own draw, keeps it with
probability a = exp(−penalty), and only otherwise scores the rest. With Z = Σ p·a, a candidate c
comes out with chance p(c)·a(c) + (1 − Z)·q(c) = Z·q(c) + (1 − Z)·q(c) = q(c): the same.
The rejected draw stays in q; leaving it out would be wrong.

Nearest prior art: VFD (arXiv 2605.14746), AWRS (2504.05410), CARDS (2406.16306), SafeSpec
(2606.19755). `paper` is SafeSteer's own rule (2605.11716, §3) for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.policy import RerankName
from safesteer_edge.guard.protocols import DecodingEngine, Probe, Proposal

# -- the guarded distribution: q(c) ∝ p(c) · exp(−λ · max(0, s(c) − τ)) ----------------------------


@dataclass(frozen=True, slots=True)
class Tilt:
    """One step's tilt: strength λ (already raised by the running risk) and threshold τ."""

    strength: float
    threshold: float

    def penalties(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """λ · max(0, s − τ) for each score: float64, same shape, ≥ 0.

        Raises GuardError for a NaN, which would win or lose every comparison.
        """
        if np.isnan(scores).any():
            raise GuardError("a candidate has no score, so the guard cannot judge this step")
        excess = np.maximum(0.0, np.asarray(scores, dtype=np.float64) - self.threshold)
        return self.strength * excess

    def acceptance(self, score: float) -> float:
        """The chance exp(−λ · max(0, s − τ)) that a drawn candidate is kept as it is.

        Raises GuardError for a NaN, which max() would take for 0.
        """
        if math.isnan(score):
            raise GuardError("a candidate has no score, so the guard cannot judge this step")
        return float(np.exp(-self.strength * max(0.0, score - self.threshold)))

    def guarded_probs(
        self, log_probs: NDArray[np.float64], scores: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """q over the candidates: float64 (k,), sums to 1."""
        return normalised_exp(log_probs - self.penalties(scores))


def normalised_exp(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(log_weights) scaled to sum to 1, safe from overflow."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def draw(probs: NDArray[np.float64], uniform: float) -> int:
    """The index that a uniform number in [0, 1) picks from `probs` by its cumulative sum."""
    index = int(np.searchsorted(np.cumsum(probs), uniform, side="right"))
    # The sum may end a rounding error below 1.
    return min(index, int(np.flatnonzero(probs)[-1]))


@dataclass(frozen=True, slots=True)
class Choice:
    """What re-ranking chose at one step.

    index: of the chosen candidate in the proposal. scores: float64 (k,), NaN where a candidate was
    not evaluated. intervened: the choice is not the one that the sampler proposed.
    """

    index: int
    score: float
    scores: NDArray[np.float64]
    intervened: bool

    @property
    def n_evaluated(self) -> int:
        """Candidates whose hidden state was evaluated."""
        return int(np.isfinite(self.scores).sum())


Reranker = Callable[[DecodingEngine, Probe, Proposal, Tilt, np.random.Generator], Choice]


def choose_lazily(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    tilt: Tilt,
    rng: np.random.Generator,
) -> Choice:
    """Choose from q, evaluating other candidates only when the sampler's draw is rejected."""
    scores = np.full(len(proposal.token_ids), np.nan)
    drawn = proposal.drawn
    state = engine.evaluate(int(proposal.token_ids[drawn]))
    scores[drawn] = probe.score(state[np.newaxis, :])[0]
    acceptance = tilt.acceptance(float(scores[drawn]))
    if acceptance == 1.0:  # no penalty: nothing can overtake it, greedy or drawn
        return _choice(proposal, scores, drawn)
    if proposal.greedy:
        return _choice(proposal, scores, _bounded_argmax(engine, probe, proposal, tilt, scores))
    if rng.random() < acceptance:
        return _choice(proposal, scores, drawn)
    _score_missing_inplace(engine, probe, proposal, scores, range(len(scores)))
    return _choice(proposal, scores, _draw_from_q(proposal, scores, tilt, rng))


def choose_eagerly(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    tilt: Tilt,
    rng: np.random.Generator,
) -> Choice:
    """Choose from q with every candidate evaluated: the reference for tests and benchmarks.

    The draw is coupled to the sampler's own, in the way of the lazy form, so that an intervention
    means the same in both, and one seed gives one answer, but for the rounding of batch shapes.
    """
    scores = np.full(len(proposal.token_ids), np.nan)
    _score_missing_inplace(engine, probe, proposal, scores, range(len(scores)))
    if proposal.greedy:
        index = int(np.argmax(proposal.log_probs - tilt.penalties(scores)))
        return _choice(proposal, scores, index)
    acceptance = tilt.acceptance(float(scores[proposal.drawn]))
    if acceptance == 1.0 or rng.random() < acceptance:
        return _choice(proposal, scores, proposal.drawn)
    return _choice(proposal, scores, _draw_from_q(proposal, scores, tilt, rng))


def choose_by_paper_rule(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    _tilt: Tilt,
    rng: np.random.Generator,
) -> Choice:
    """SafeSteer's rule: draw from Softmax over the top-k of the probe's linear score.

    The model's own probabilities play no part beyond choosing the top-k. The score is taken towards
    safety: −logit(harmful_score), argmax at temperature 0. (Sources disagree on the sign: a probe
    trained on requests scores refusals high; ours is trained on answers, so harm is high.)
    """
    scores = np.full(len(proposal.token_ids), np.nan)
    _score_missing_inplace(engine, probe, proposal, scores, range(len(scores)))
    clipped = np.minimum(np.maximum(scores, 1e-6), 1.0 - 1e-6)
    safety = np.log1p(-clipped) - np.log(clipped)
    if proposal.greedy:
        index = int(np.argmax(safety))
    else:
        index = draw(normalised_exp(safety), rng.random())
    return _choice(proposal, scores, index)


def choose_as_proposed(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    _tilt: Tilt,
    _rng: np.random.Generator,
) -> Choice:
    """Keep the sampler's draw, with its score: for the modes that do not re-rank."""
    scores = np.full(len(proposal.token_ids), np.nan)
    state = engine.evaluate(int(proposal.token_ids[proposal.drawn]))
    scores[proposal.drawn] = probe.score(state[np.newaxis, :])[0]
    return _choice(proposal, scores, proposal.drawn)


RERANKERS: dict[RerankName, Reranker] = {
    "lazy": choose_lazily,
    "eager": choose_eagerly,
    "paper": choose_by_paper_rule,
}


def _bounded_argmax(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    tilt: Tilt,
    scores: NDArray[np.float64],
) -> int:
    """Branch and bound: argmax of log p − penalty, scoring only candidates that can still win.

    A penalty is ≥ 0, so log p bounds a candidate's value; log_probs are descending. Fills `scores`.
    """
    best = proposal.drawn
    best_value = proposal.log_probs[best] - tilt.penalties(scores[best : best + 1])[0]
    start = best + 1
    while start < len(scores) and proposal.log_probs[start] > best_value:
        ahead = proposal.log_probs[start : start + engine.candidates_at_once]
        end = start + int((ahead > best_value).sum())  # descending: those that can win come first
        _score_missing_inplace(engine, probe, proposal, scores, range(start, end))
        values = proposal.log_probs[start:end] - tilt.penalties(scores[start:end])
        if values.max() > best_value:
            best, best_value = start + int(values.argmax()), values.max()
        start = end
    return best


def _draw_from_q(
    proposal: Proposal, scores: NDArray[np.float64], tilt: Tilt, rng: np.random.Generator
) -> int:
    return draw(tilt.guarded_probs(proposal.log_probs, scores), rng.random())


def _score_missing_inplace(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    scores: NDArray[np.float64],
    indices: range,
) -> None:
    missing = [index for index in indices if np.isnan(scores[index])]
    if missing:
        states = engine.evaluate_candidates([int(proposal.token_ids[i]) for i in missing])
        scores[missing] = probe.score(states)


def _choice(proposal: Proposal, scores: NDArray[np.float64], index: int) -> Choice:
    return Choice(
        index=index,
        score=float(scores[index]),
        scores=scores,
        intervened=index != proposal.drawn,
    )
