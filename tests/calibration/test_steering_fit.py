"""Steering's numbers: calm answers are not touched, and harmful ones lose what they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.calibration.policy_fit import AnswerScores, choose_policy
from safesteer_edge.calibration.steering_fit import with_steering
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.risk import RunningRisk
from tests.calibration.test_policy_fit import TARGETS, Rows, made_up_scores, share_refused


def share_touched(rows: Rows, policy: GuardPolicy) -> float:
    """Share of answers at which λ is above 0 at any step, replayed token by token."""
    n_touched = 0
    for row in rows:
        risk = RunningRisk(policy, prompt_score=float(row[0]))
        is_touched = False
        for score in row[1:]:
            risk.add(float(score))
            is_touched = is_touched or risk.strength > 0
        n_touched += is_touched
    return n_touched / len(rows)


def steered(scores: AnswerScores) -> GuardPolicy:
    return with_steering(choose_policy(scores, TARGETS), scores, TARGETS).policy


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_no_more_benign_answers_are_touched_than_may_be(seed: int):
    # From the first token on, where scores are noisiest, whatever refusals wait for.
    scores = made_up_scores(seed)
    policy = steered(scores)
    assert share_touched(list(scores.ordinary), policy) <= TARGETS.touched
    assert share_touched(list(scores.borderline), policy) <= TARGETS.borderline_touched
    assert share_touched(list(scores.harmless_twins), policy) <= TARGETS.twins_refused
    assert share_touched(list(scores.harmful), policy) > 0.7


def test_what_is_refused_stays_what_it_was_and_is_steered_first():
    scores = made_up_scores(3)
    choice = choose_policy(scores, TARGETS)
    policy = steered(scores)
    for rows in (scores.ordinary, scores.harmless_twins, scores.harmful):
        assert share_refused(list(rows), policy) == share_refused(list(rows), choice.policy)
    assert policy.retries == 2
    assert policy.steer_from is not None and policy.steer_from < policy.risk_limit


def test_the_threshold_is_above_most_tokens_of_benign_answers_to_such_questions():
    scores = made_up_scores(3)
    tokens = np.concatenate([row[1:] for row in (*scores.harmless_twins, *scores.borderline)])
    assert 0.85 <= np.mean(tokens <= steered(scores).threshold) <= 0.95
    above = np.concatenate([row[1:] for row in scores.harmful])
    policy = steered(scores)
    kept = np.exp(-policy.strength * np.maximum(0.0, above - policy.threshold))
    assert kept[above > policy.threshold].mean() <= 0.25


def test_without_twins_and_borderline_answers_ordinary_ones_decide():
    scores = replace(made_up_scores(3), harmless_twins=[], borderline=[])
    tokens = np.concatenate([row[1:] for row in scores.ordinary])
    assert np.mean(tokens <= steered(scores).threshold) >= 0.85
