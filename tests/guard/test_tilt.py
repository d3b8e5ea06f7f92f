"""The guarded distribution q ∝ p · exp(−λ · max(0, s − τ)), and drawing from it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.reranking import Tilt, draw
from tests.guard.candidate_sets import (
    CandidateSet,
    candidate_sets,
    scores,
    strengths,
    thresholds,
    tilts,
)

ROUNDING = 1e-12


def p_s_q(candidates: CandidateSet, tilt: Tilt):
    """Probabilities, scores and guarded probabilities, in the proposal's order."""
    _, proposal = candidates.proposed_by(greedy=True)
    candidate_scores = candidates.scores_in_order(proposal)
    guarded = tilt.guarded_probs(proposal.log_probs, candidate_scores)
    return np.exp(proposal.log_probs), candidate_scores, guarded


def test_a_case_worked_out_by_hand():
    tilt = Tilt(strength=np.log(4.0), threshold=0.5)
    # p = (1/2, 1/4, 1/4); excess = (1/2, 0, 1): the weights are 1/4, 1/4 and 1/16.
    guarded = tilt.guarded_probs(np.log([0.5, 0.25, 0.25]), np.array([1.0, 0.5, 1.5]))
    assert guarded == pytest.approx([4 / 9, 4 / 9, 1 / 9])


@given(candidate_sets(), tilts)
@settings(deadline=None)
def test_q_is_the_tilted_p_and_sums_to_1(candidates: CandidateSet, tilt: Tilt):
    p, s, q = p_s_q(candidates, tilt)
    assert q.sum() == pytest.approx(1.0, abs=ROUNDING)
    assert (q >= 0).all()
    # The definition, candidate by candidate, in ratios to the likeliest one under q.
    best = int(q.argmax())
    excess = np.maximum(0.0, s - tilt.threshold)
    expected = p / p[best] * np.exp(-tilt.strength * (excess - excess[best]))
    np.testing.assert_allclose(q / q[best], expected, rtol=1e-6, atol=ROUNDING)


@given(candidate_sets(), strengths, st.data())
@settings(deadline=None)
def test_q_is_p_where_no_score_exceeds_the_threshold(
    candidates: CandidateSet, strength: float, data: st.DataObject
):
    threshold = data.draw(st.floats(max(candidates.scores), 1.0))
    p, _, q = p_s_q(candidates, Tilt(strength, threshold))
    np.testing.assert_allclose(q, p, rtol=ROUNDING)


@given(candidate_sets(), strengths, strengths, thresholds)
@settings(deadline=None)
def test_a_larger_strength_moves_mass_to_lower_scores(
    candidates: CandidateSet, one: float, other: float, threshold: float
):
    weaker, stronger = sorted((one, other))
    _, s, q_weak = p_s_q(candidates, Tilt(weaker, threshold))
    _, _, q_strong = p_s_q(candidates, Tilt(stronger, threshold))
    excess = np.maximum(0.0, s - threshold)
    for level in excess:  # stochastic order: no level set {excess ≤ level} loses mass
        below = excess <= level
        assert q_strong[below].sum() >= q_weak[below].sum() - ROUNDING
    assert q_strong @ excess <= q_weak @ excess + ROUNDING


@given(candidate_sets(), tilts, scores, st.data())
@settings(deadline=None)
def test_a_higher_score_never_helps_its_candidate_nor_hurts_another(
    candidates: CandidateSet, tilt: Tilt, new_score: float, data: st.DataObject
):
    _, proposal = candidates.proposed_by(greedy=True)
    before = candidates.scores_in_order(proposal)
    index = data.draw(st.integers(0, len(before) - 1))
    assume(new_score >= before[index])
    after = before.copy()
    after[index] = new_score
    change = tilt.guarded_probs(proposal.log_probs, after) - tilt.guarded_probs(
        proposal.log_probs, before
    )
    assert change[index] <= ROUNDING
    assert (np.delete(change, index) >= -ROUNDING).all()


@given(scores, tilts)
def test_acceptance_is_the_unnormalised_tilt(score: float, tilt: Tilt):
    acceptance = tilt.acceptance(score)
    assert 0.0 <= acceptance <= 1.0
    assert acceptance == pytest.approx(float(np.exp(-tilt.penalties(np.array([score]))[0])))
    if score <= tilt.threshold:
        assert acceptance == 1.0


@given(st.lists(st.integers(0, 64), min_size=1, max_size=12).filter(any), st.data())
def test_draw_is_the_inverse_of_the_cumulative_sum(counts: list[int], data: st.DataObject):
    # Sixty-fourths, filled up to a power of two: every sum below is exact in float64.
    total = 1 << sum(counts).bit_length()
    counts.append(total - sum(counts))
    probs = np.array(counts) / total
    edges = np.cumsum(counts)
    for count, edge in zip(counts, edges, strict=True):
        first = draw(probs, float(Fraction(int(edge - count), total)))
        last = draw(probs, float(np.nextafter(edge / total, 0.0)))
        if count:  # [start, edge) belongs to this index, and all of it
            assert int(np.searchsorted(edges, edge)) == first == last
    uniform = data.draw(st.floats(0.0, 1.0, exclude_max=True))
    assert draw(probs, uniform) == next(i for i, edge in enumerate(edges) if edge > uniform * total)


def test_draw_never_takes_an_impossible_candidate():
    assert draw(np.array([0.0, 0.5, 0.0, 0.5, 0.0]), 0.0) == 1
    assert draw(np.array([0.0, 0.5, 0.0, 0.5, 0.0]), 0.5) == 3
    # A sum that rounding left short of 1 must not let the last number fall off its end.
    short = np.array([0.5, 0.4999999999, 0.0])
    assert draw(short, float(np.nextafter(1.0, 0.0))) == 1


@given(candidate_sets(), tilts)
@settings(deadline=None)
def test_an_extreme_tilt_overflows_nowhere(candidates: CandidateSet, tilt: Tilt):
    with np.errstate(all="raise", under="ignore"):
        _, _, q = p_s_q(candidates, Tilt(tilt.strength * 1e3, tilt.threshold))
    assert np.isfinite(q).all()


@given(candidate_sets(), tilts, st.data())
@settings(deadline=None)
def test_a_missing_score_is_no_low_one(candidates: CandidateSet, tilt: Tilt, data: st.DataObject):
    _, proposal = candidates.proposed_by(greedy=True)
    missing = candidates.scores_in_order(proposal).copy()
    missing[data.draw(st.integers(0, len(missing) - 1))] = np.nan
    with pytest.raises(GuardError, match="no score"):
        tilt.guarded_probs(proposal.log_probs, missing)
    with pytest.raises(GuardError, match="no score"):
        tilt.acceptance(float("nan"))
