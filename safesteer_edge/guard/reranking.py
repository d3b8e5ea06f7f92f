"""Re-ranking: choosing one candidate of a decoding step by the guarded distribution q.

`lazy` and `eager` draw from the same q = `Tilt.guarded_probs` (at temperature 0: its argmax).
Eager scores every candidate at every step. Lazy scores the sampler's own draw, keeps it with
probability a = exp(−penalty), and only otherwise scores the rest. With Z = Σ p·a, a candidate c
comes out with chance p(c)·a(c) + (1 − Z)·q(c) = Z·q(c) + (1 − Z)·q(c) = q(c): the same.
The rejected draw stays in q; leaving it out would be wrong.

Where an answer is steered anew, safe openings of some tokens join the candidates as one each:
`with_openings` makes p′ = (1 − m)·p + m·o, and q is defined over p′. A block's score is that of its
last token: one token says little about where an answer goes, three or four say much. Before that
`choose_by_odds` weighs what the model's own likely beginnings lead to.

Nearest prior art: VFD (arXiv 2605.14746), AWRS (2504.05410), CARDS (2406.16306), SafeSpec
(2606.19755). `paper` is SafeSteer's own rule (2605.11716, §3) for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.policy import RerankName
from safesteer_edge.guard.protocols import Block, DecodingEngine, Probe, Proposal

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
        return math.exp(-self.strength * max(0.0, score - self.threshold))

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

    index: of the chosen candidate in the proposal. scores: float64, one a candidate, NaN where it
    was not evaluated. intervened: the choice is not the sampler's own draw.
    token_scores: of the tokens that the choice stands for; the last is its score.
    """

    index: int
    score: float
    scores: NDArray[np.float64]
    intervened: bool
    token_scores: tuple[float, ...]

    @property
    def n_evaluated(self) -> int:
        """Candidates whose hidden state was evaluated."""
        return sum(map(math.isfinite, self.scores.tolist()))


# What the published rule chooses among: candidates that hold so much of the probability, each with
# so much of the likeliest one's.
_NUCLEUS: Final = 0.9
_LEAST_SHARE: Final = 0.1

Reranker = Callable[[DecodingEngine, Probe, Proposal, Tilt, np.random.Generator], Choice]


def choose_lazily(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    tilt: Tilt,
    rng: np.random.Generator,
) -> Choice:
    """Choose from q, evaluating other candidates only when the sampler's draw is rejected."""
    step = _Step(engine, probe, proposal)
    step.score_drawn()
    acceptance = tilt.acceptance(float(step.scores[proposal.drawn]))
    if acceptance == 1.0:  # no penalty: nothing can overtake it, greedy or drawn
        return step.choice(proposal.drawn)
    if proposal.greedy:
        return step.choice(_bounded_argmax(step, tilt))
    if rng.random() < acceptance:
        return step.choice(proposal.drawn)
    step.score_all()
    return step.choice(step.draw_from_q(tilt, rng))


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
    step = _Step(engine, probe, proposal)
    step.score_all()
    if proposal.greedy:
        order = likeliest_first(proposal.log_probs)
        values = (proposal.log_probs - tilt.penalties(step.scores))[order]
        return step.choice(int(order[np.argmax(values)]))
    acceptance = tilt.acceptance(float(step.scores[proposal.drawn]))
    if acceptance == 1.0 or rng.random() < acceptance:
        return step.choice(proposal.drawn)
    return step.choice(step.draw_from_q(tilt, rng))


def choose_by_paper_rule(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    _tilt: Tilt,
    rng: np.random.Generator,
) -> Choice:
    """SafeSteer's rule: draw from Softmax over likely candidates of the probe's linear score.

    Likely are the fewest that hold 0.9 of the probability, and of them those with a tenth of the
    likeliest one's at least, at temperature 0 as well: the rule then looks at the model's own
    probabilities no more, and over a plain top-k of 16 it writes words without sense. The score is
    taken towards safety: −logit(harmful_score), argmax at temperature 0. (Sources disagree on the
    sign: a probe trained on requests scores refusals high; ours is trained on answers, so harm is
    high.)
    """
    step = _Step(engine, probe, proposal)
    order = likeliest_first(proposal.log_probs)
    probs = np.exp(proposal.log_probs[order])
    n_before = int((np.cumsum(probs) < _NUCLEUS).sum())
    likely = order[: n_before + 1][probs[: n_before + 1] >= _LEAST_SHARE * probs[0]]
    step.score_missing(likely.tolist())
    safety = -_log_odds(step.scores[likely])
    if proposal.greedy:
        place = int(np.argmax(safety))
    else:
        place = draw(normalised_exp(safety), rng.random())
    return step.choice(int(likely[place]))


def choose_as_proposed(
    engine: DecodingEngine,
    probe: Probe,
    proposal: Proposal,
    _tilt: Tilt,
    _rng: np.random.Generator,
) -> Choice:
    """Keep the sampler's draw, with its score: for the modes that do not re-rank."""
    step = _Step(engine, probe, proposal)
    step.score_drawn()
    return step.choice(proposal.drawn)


RERANKERS: dict[RerankName, Reranker] = {
    "lazy": choose_lazily,
    "eager": choose_eagerly,
    "paper": choose_by_paper_rule,
}


def with_openings(
    proposal: Proposal, openings: Sequence[Block], share: float, rng: np.random.Generator
) -> Proposal:
    """p′ = (1 − m)·p + m·o: the sampler's candidates, and each opening as one more.

    openings: not empty, the preferred one first; o gives each the same chance. share: m in (0, 1).
    The sampler's own draw is kept with chance 1 − m, else an opening is drawn.
    """
    n_tokens, n_blocks = len(proposal.token_ids), len(openings)
    log_openings = np.full(n_blocks, math.log(share / n_blocks))
    log_probs = np.concatenate([proposal.log_probs + math.log1p(-share), log_openings])
    drawn = proposal.drawn
    if proposal.greedy:
        drawn = int(likeliest_first(log_probs)[0])
    elif rng.random() < share:
        drawn = n_tokens + min(int(rng.random() * n_blocks), n_blocks - 1)
    return replace(
        proposal,
        log_probs=log_probs,
        drawn=drawn,
        blocks=tuple(openings),
        sampled=proposal.drawn,
    )


def choose_by_odds(
    probe: Probe,
    proposal: Proposal,
    states: Sequence[NDArray[np.float32]],
    rng: np.random.Generator,
) -> Choice:
    """Choose among candidates that were looked ahead from, by q ∝ p · (1 − s) / s.

    s: the score of a candidate's last token, as of an opening's. A chance times the odds that what
    it leads to is safe: no threshold hides how much safer one of two calm candidates is, as a
    refusal is than a story that evades. (Controlled decoding, arXiv 2310.17022, and FUDGE,
    2104.05218, weigh candidates by where they lead likewise.)
    states: of each one's tokens, float32 (n_tokens, n_features).
    Raises GuardError for a NaN.
    """
    ends = np.cumsum([len(each) for each in states])
    token_scores = probe.score(np.concatenate(states))
    scores = np.asarray(token_scores, dtype=np.float64)[ends - 1]
    if np.isnan(token_scores).any():
        raise GuardError("a candidate has no score, so the guard cannot judge this step")
    weights = proposal.log_probs - _log_odds(scores)
    index = (
        int(np.argmax(weights)) if proposal.greedy else draw(normalised_exp(weights), rng.random())
    )
    own = token_scores[ends[index] - len(states[index]) : ends[index]]
    return Choice(
        index=index,
        score=float(scores[index]),
        scores=scores,
        intervened=index != proposal.drawn,
        token_scores=tuple(own.tolist()),
    )


def _log_odds(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    clipped = np.minimum(np.maximum(np.asarray(scores, dtype=np.float64), 1e-6), 1.0 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


class _Step:
    """The candidates of one step and what the probe makes of those that were evaluated."""

    def __init__(self, engine: DecodingEngine, probe: Probe, proposal: Proposal) -> None:
        self._engine, self._probe, self.proposal = engine, probe, proposal
        self._block_scores: dict[int, tuple[float, ...]] = {}
        self.scores = np.full(len(proposal.log_probs), np.nan)

    @property
    def candidates_at_once(self) -> int:
        return self._engine.candidates_at_once

    def score_drawn(self) -> None:
        drawn = self.proposal.drawn
        if drawn >= len(self.proposal.token_ids):
            self.score_missing([drawn])
            return
        state = self._engine.evaluate(int(self.proposal.token_ids[drawn]))
        self.scores[drawn] = self._probe.score(state[np.newaxis, :])[0]

    def score_all(self) -> None:
        self.score_missing(range(len(self.scores)))

    def score_missing(self, indices: Sequence[int]) -> None:
        missing = [index for index in indices if np.isnan(self.scores[index])]
        n_tokens = len(self.proposal.token_ids)
        tokens = [index for index in missing if index < n_tokens]
        if tokens:
            states = self._engine.evaluate_candidates([*self.proposal.token_ids[tokens].tolist()])
            self.scores[tokens] = self._probe.score(states)
        blocks = [index for index in missing if index >= n_tokens]
        if blocks:
            states = self._engine.evaluate_blocks([self.proposal.candidate(i) for i in blocks])
            scores = self._probe.score(np.concatenate(states))
            ends = np.cumsum([len(each) for each in states])[:-1]
            for index, own in zip(blocks, np.split(scores, ends), strict=True):
                self._block_scores[index] = tuple(own.tolist())
                self.scores[index] = own[-1]

    def draw_from_q(self, tilt: Tilt, rng: np.random.Generator) -> int:
        return draw(tilt.guarded_probs(self.proposal.log_probs, self.scores), rng.random())

    def choice(self, index: int) -> Choice:
        score = float(self.scores[index])
        own = self.proposal.drawn if self.proposal.sampled is None else self.proposal.sampled
        return Choice(
            index=index,
            score=score,
            scores=self.scores,
            intervened=index != own,
            token_scores=self._block_scores.get(index, (score,)),
        )


def _bounded_argmax(step: _Step, tilt: Tilt) -> int:
    """Branch and bound: argmax of log p − penalty, scoring only candidates that can still win.

    A penalty is ≥ 0, so log p bounds a candidate's value; the likeliest are looked at first.
    """
    log_probs, best = step.proposal.log_probs, step.proposal.drawn
    best_value = log_probs[best] - tilt.penalties(step.scores[best : best + 1])[0]
    order = likeliest_first(log_probs)
    start = 1  # the first is the one that was drawn
    while start < len(order) and log_probs[order[start]] > best_value:
        ahead = order[start : start + step.candidates_at_once]
        ahead = ahead[log_probs[ahead] > best_value]
        step.score_missing(ahead.tolist())
        values = log_probs[ahead] - tilt.penalties(step.scores[ahead])
        if values.max() > best_value:
            best, best_value = int(ahead[values.argmax()]), values.max()
        start += len(ahead)
    return best


def likeliest_first(log_probs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the candidates; equal ones keep their order, so that lazy and eager break ties
    alike.
    """
    return np.argsort(-log_probs, kind="stable")
