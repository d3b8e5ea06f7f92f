"""Re-ranking: lazy and eager draw from exactly q, and agree number for number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesteer_edge.guard.reranking import (
    Choice,
    Reranker,
    Tilt,
    choose_as_proposed,
    choose_by_paper_rule,
    choose_eagerly,
    choose_lazily,
)
from tests.guard.candidate_sets import CandidateSet, candidate_sets, scores, thresholds, tilts
from tests.guard.exact_law import EDGE_ERROR, GivenUniforms, exact_law
from tests.guard.scripted_engine import Call, ScriptedEngine

uniforms = st.floats(0.0, 1.0, exclude_max=True)
NO_NUMBERS = GivenUniforms().as_generator
# Bisection's error in each number, and that of float64 in the sums of p and q.
LAW_ERROR = 64 * EDGE_ERROR


def choose(
    reranker: Reranker,
    candidates: CandidateSet,
    tilt: Tilt,
    rng: np.random.Generator,
    *,
    drawn: int | None = None,
) -> tuple[Choice, ScriptedEngine]:
    """One step. drawn: what the sampler drew; None is greedy decoding."""
    engine, proposal = candidates.proposed_by(greedy=drawn is None)
    proposal = replace(proposal, drawn=drawn or 0)
    return reranker(engine, candidates.probe(), proposal, tilt, rng), engine


def law_of(reranker: Reranker, candidates: CandidateSet, tilt: Tilt) -> NDArray[np.float64]:
    """P(candidate chosen), exact over the sampler's draw and the re-ranker's own numbers."""
    _, proposal = candidates.proposed_by(greedy=False)
    probs = np.exp(proposal.log_probs)
    law = np.zeros(len(probs))
    for drawn, prob in enumerate(probs):
        law += prob * exact_law(
            lambda rng, drawn=drawn: choose(reranker, candidates, tilt, rng, drawn=drawn)[0].index,
            len(probs),
        )
    return law


def q_of(candidates: CandidateSet, tilt: Tilt) -> NDArray[np.float64]:
    """The definition: p · exp(−λ · max(0, s − τ)), normalised. In logarithms: λ may be huge."""
    _, proposal = candidates.proposed_by(greedy=False)
    excess = np.maximum(0.0, candidates.scores_in_order(proposal) - tilt.threshold)
    log_weights = proposal.log_probs - tilt.strength * excess
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


@pytest.mark.parametrize("reranker", [choose_lazily, choose_eagerly])
@given(candidates=candidate_sets(max_size=5), tilt=tilts)
@settings(max_examples=80, deadline=None)
def test_the_choice_is_distributed_exactly_as_q(
    reranker: Reranker, candidates: CandidateSet, tilt: Tilt
):
    law = law_of(reranker, candidates, tilt)
    np.testing.assert_allclose(law, q_of(candidates, tilt), atol=LAW_ERROR)


@given(candidate_sets(), tilts, st.data(), uniforms, uniforms)
@settings(deadline=None)
def test_lazy_and_eager_agree_for_the_same_draw_and_the_same_numbers(
    candidates: CandidateSet, tilt: Tilt, data: st.DataObject, first: float, second: float
):
    drawn = data.draw(st.integers(0, len(candidates.scores) - 1))
    lazy_numbers, eager_numbers = GivenUniforms(first, second), GivenUniforms(first, second)
    lazy, _ = choose(choose_lazily, candidates, tilt, lazy_numbers.as_generator, drawn=drawn)
    eager, _ = choose(choose_eagerly, candidates, tilt, eager_numbers.as_generator, drawn=drawn)
    assert (lazy.index, lazy.score, lazy.intervened) == (eager.index, eager.score, eager.intervened)
    assert lazy_numbers.n_used == eager_numbers.n_used


@given(candidate_sets(), tilts)
@settings(max_examples=200, deadline=None)
def test_greedy_lazy_and_greedy_eager_take_the_argmax(candidates: CandidateSet, tilt: Tilt):
    lazy, _ = choose(choose_lazily, candidates, tilt, NO_NUMBERS)
    eager, _ = choose(choose_eagerly, candidates, tilt, NO_NUMBERS)
    _, proposal = candidates.proposed_by(greedy=True)
    excess = np.maximum(0.0, candidates.scores_in_order(proposal) - tilt.threshold)
    # Ties go to the likelier candidate, and then to the one that the sampler put first.
    assert eager.index == int(np.argmax(proposal.log_probs - tilt.strength * excess))
    assert (lazy.index, lazy.score, lazy.intervened) == (eager.index, eager.score, eager.intervened)


@given(candidate_sets(max_size=16), tilts)
@settings(max_examples=200, deadline=None)
def test_greedy_lazy_evaluates_only_candidates_that_can_still_win(
    candidates: CandidateSet, tilt: Tilt
):
    choice, engine = choose(choose_lazily, candidates, tilt, NO_NUMBERS)
    _, proposal = candidates.proposed_by(greedy=True)
    log_probs = dict(zip(proposal.token_ids.tolist(), proposal.log_probs, strict=True))
    best = -np.inf
    for call in engine.calls[1:]:
        for token_id in call.token_ids:
            assert log_probs[token_id] > best  # the bound, before this batch is known
        values = [
            log_probs[token_id] - tilt.penalties(np.array([candidates.token_scores[token_id]]))[0]
            for token_id in call.token_ids
        ]
        best = max(best, *values)
    # And it stopped late enough: whatever was not evaluated is bounded by the winner.
    unseen = np.isnan(choice.scores)
    assert (proposal.log_probs[unseen] <= best).all()


@given(candidate_sets(max_size=16), tilts, st.booleans())
@settings(deadline=None)
def test_lazy_evaluates_one_candidate_if_it_is_at_or_below_the_threshold(
    candidates: CandidateSet, tilt: Tilt, greedy: bool
):
    _, proposal = candidates.proposed_by(greedy=greedy)
    first = int(proposal.token_ids[0])
    assume(candidates.token_scores[first] <= tilt.threshold)
    choice, engine = choose(
        choose_lazily, candidates, tilt, NO_NUMBERS, drawn=None if greedy else 0
    )
    assert engine.calls == [Call("propose"), Call("evaluate", (first,))]
    assert (choice.index, choice.n_evaluated, choice.intervened) == (0, 1, False)


def test_a_rejected_draw_stays_among_the_candidates_of_the_redraw():
    candidates = CandidateSet(weights=(3.0, 1.0), scores=(1.0, 1.0))
    tilt = Tilt(strength=2.0, threshold=0.5)
    numbers = GivenUniforms(0.9, 0.0)  # 0.9 > e^-1: rejected; 0.0 draws the first of q
    choice, engine = choose(choose_lazily, candidates, tilt, numbers.as_generator, drawn=0)
    assert choice.index == 0
    assert not choice.intervened
    # It was evaluated already: the batch holds the others alone.
    assert [len(call.token_ids) for call in engine.calls] == [0, 1, 1]


def likely_of(candidates: CandidateSet) -> int:
    """How many hold 0.9 of the probability, each with a tenth of the likeliest one's at least."""
    _, proposal = candidates.proposed_by(greedy=True)
    probs = np.exp(proposal.log_probs)
    held, n = 0.0, 0
    for probability in probs:
        if held >= 0.9 or probability < 0.1 * probs[0]:
            break
        held += probability
        n += 1
    return n


@given(candidate_sets(max_size=5), thresholds)
@settings(max_examples=25, deadline=None)
def test_the_paper_rule_draws_from_the_softmax_of_minus_logit_over_likely_candidates(
    candidates: CandidateSet, threshold: float
):
    tilt = Tilt(4.0, threshold)
    law = law_of(choose_by_paper_rule, candidates, tilt)
    _, proposal = candidates.proposed_by(greedy=False)
    # exp(−logit s) = (1 − s) / s, with s kept off 0 and 1
    clipped = np.clip(candidates.scores_in_order(proposal), 1e-6, 1.0 - 1e-6)
    odds = np.where(np.arange(len(law)) < likely_of(candidates), (1.0 - clipped) / clipped, 0.0)
    np.testing.assert_allclose(law, odds / odds.sum(), atol=LAW_ERROR)


@given(st.lists(scores, min_size=1, max_size=8), uniforms, st.data())
@settings(deadline=None)
def test_among_likely_candidates_the_paper_rule_looks_at_neither_p_nor_the_draw_nor_the_tilt(
    candidate_scores: list[float], uniform: float, data: st.DataObject
):
    def index(weights: list[float], tilt: Tilt, drawn: int) -> int:
        rng = GivenUniforms(uniform).as_generator
        same_order = CandidateSet(tuple(weights), tuple(candidate_scores))
        return choose(choose_by_paper_rule, same_order, tilt, rng, drawn=drawn)[0].index

    k = len(candidate_scores)  # at most 8, each with more than 0.1: all of them are likely
    falling, level = [100.0 - i for i in range(k)], [10.0 - 0.01 * i for i in range(k)]
    drawn = data.draw(st.integers(0, k - 1))
    assert index(falling, Tilt(1.0, 0.0), 0) == index(level, Tilt(9.0, 0.9), drawn)


@given(candidate_sets())
@settings(deadline=None)
def test_the_greedy_paper_rule_takes_the_lowest_score_of_the_likely_candidates(
    candidates: CandidateSet,
):
    choice, engine = choose(choose_by_paper_rule, candidates, Tilt(1.0, 0.5), NO_NUMBERS)
    _, proposal = candidates.proposed_by(greedy=True)
    n = likely_of(candidates)
    clipped = np.clip(candidates.scores_in_order(proposal)[:n], 1e-6, 1.0 - 1e-6)
    assert choice.index == int(clipped.argmin())
    assert engine.n_evaluated_states == n


def test_the_paper_rule_never_takes_an_unlikely_word_however_safe_it_is():
    candidates = CandidateSet(weights=(60.0, 35.0, 5.0), scores=(0.9, 0.7, 0.0))
    choice, _ = choose(choose_by_paper_rule, candidates, Tilt(1.0, 0.5), NO_NUMBERS)
    assert choice.index == 1


@given(candidate_sets(), tilts, st.data())
@settings(deadline=None)
def test_without_reranking_the_draw_is_kept_and_scored(
    candidates: CandidateSet, tilt: Tilt, data: st.DataObject
):
    drawn = data.draw(st.integers(0, len(candidates.scores) - 1))
    choice, engine = choose(choose_as_proposed, candidates, tilt, NO_NUMBERS, drawn=drawn)
    _, proposal = candidates.proposed_by(greedy=False)
    assert (choice.index, choice.n_evaluated, choice.intervened) == (drawn, 1, False)
    assert choice.score == candidates.scores_in_order(proposal)[drawn]
    assert engine.n_forward_passes == 1


@pytest.mark.parametrize("reranker", [choose_lazily, choose_eagerly, choose_by_paper_rule])
@given(candidates=candidate_sets(), tilt=tilts, first=uniforms, second=uniforms)
@settings(max_examples=50, deadline=None)
def test_the_choice_reports_what_was_evaluated(
    reranker: Reranker, candidates: CandidateSet, tilt: Tilt, first: float, second: float
):
    rng = GivenUniforms(first, second).as_generator
    choice, engine = choose(reranker, candidates, tilt, rng, drawn=0)
    _, proposal = candidates.proposed_by(greedy=False)
    expected = candidates.scores_in_order(proposal)
    evaluated = np.isfinite(choice.scores)
    np.testing.assert_array_equal(choice.scores[evaluated], expected[evaluated])
    assert choice.score == expected[choice.index]
    assert choice.n_evaluated == engine.n_evaluated_states == evaluated.sum()
    engine.accept(int(proposal.token_ids[choice.index]))  # no ProtocolMisuseError
