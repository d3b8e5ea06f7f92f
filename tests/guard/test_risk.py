"""The running risk: a mean at first, a moving average later, and when it ends a turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.risk import RunningRisk
from tests.guard.scripted_answers import POLICY, no_scores, policy_with

many_scores = st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=60)
decays = st.sampled_from([0.0, 0.5, 0.9, 0.95]) | st.floats(0.0, 0.9999)
shares = st.floats(0.0, 1.0)


def risk_after(scores: Sequence[float], *, carried: float = 0.0, **policy: float) -> RunningRisk:
    risk = RunningRisk(policy_with(**policy), carried=carried)
    for score in scores:
        risk.add(score)
    return risk


@given(many_scores, decays)
def test_risk_is_the_mean_until_the_average_has_forgotten_its_start(
    scores: list[float], decay: float
):
    n_mean = min(len(scores), int(1.0 / (1.0 - decay)))
    risk = risk_after(scores[:n_mean], risk_decay=decay)
    assert risk.value == pytest.approx(np.mean(scores[:n_mean]), abs=1e-9)


@given(many_scores, decays)
def test_risk_is_a_moving_average_from_then_on(scores: list[float], decay: float):
    n_mean = int(1.0 / (1.0 - decay)) + 1
    before, after = scores[:n_mean], scores[n_mean:]
    expected = risk_after(before, risk_decay=decay).value
    for score in after:
        expected = decay * expected + (1.0 - decay) * score
    assert risk_after(scores, risk_decay=decay).value == pytest.approx(expected, abs=1e-9)


@given(many_scores, shares)
def test_carried_risk_counts_as_one_more_token(scores: list[float], carried: float):
    risk = risk_after(scores, carried=carried, risk_decay=0.9999)
    counted = [carried, *scores] if carried > 0 else scores
    assert risk.value == pytest.approx(np.mean(counted), abs=1e-9)


def test_no_carried_risk_does_not_dilute_the_first_score():
    assert risk_after([0.8]).value == 0.8
    assert risk_after([0.8], carried=0.4).value == pytest.approx(0.6)


@given(many_scores, decays, shares)
def test_risk_stays_within_0_and_1(scores: list[float], decay: float, carried: float):
    risk = RunningRisk(policy_with(risk_decay=decay), carried=carried)
    values = [risk.value]
    for score in scores:
        risk.add(score)
        values.append(risk.value)
        assert 0.0 <= risk.value <= 1.0
        assert risk.max_value == max(values)
        assert 0.0 <= risk.carry_over() <= risk.value


@given(many_scores, decays, shares, st.floats(0.0, 1e3))
def test_strength_grows_with_risk(scores: list[float], decay: float, carried: float, gain: float):
    risk = risk_after(scores, carried=carried, risk_decay=decay, risk_gain=gain)
    assert risk.strength == pytest.approx(POLICY.strength * (1.0 + gain * risk.value))
    assert risk.strength >= POLICY.strength
    riskier = RunningRisk(policy_with(risk_gain=gain), carried=1.0)
    assert riskier.strength >= risk.strength


@given(many_scores, shares)
def test_a_conversation_passes_on_its_share(scores: list[float], share: float):
    risk = risk_after(scores, conversation_carry=share)
    assert risk.carry_over() == share * risk.value


def test_hard_tokens_refuse_only_in_a_row():
    hard, soft = 0.96, 0.95  # the hard threshold itself is not above it
    assert risk_after([hard] * 2).refusal_reason() is None
    assert risk_after([hard] * 3).refusal_reason() == "no_safe_candidate"
    assert risk_after([hard, hard, soft, hard, hard]).refusal_reason() is None
    assert risk_after([hard, hard, soft, hard, hard, hard]).refusal_reason() == "no_safe_candidate"


def test_risk_refuses_above_its_limit_and_not_before_the_first_steps():
    limits = {"risk_limit": 0.5, "risk_min_steps": 4}
    assert risk_after([0.75] * 3, **limits).refusal_reason() is None
    assert risk_after([0.75] * 4, **limits).refusal_reason() == "risk_limit"
    assert risk_after([0.5] * 4, **limits).refusal_reason() is None
    assert risk_after([1.0] * 4, risk_limit=1.0, hard_patience=9).refusal_reason() is None


def test_carried_risk_alone_refuses_nothing():
    risk = risk_after([0.0], carried=1.0, risk_limit=0.4, risk_min_steps=1)
    assert risk.value == 0.5
    assert RunningRisk(policy_with(risk_limit=0.0), carried=1.0).refusal_reason() is None


def test_risk_is_calm_once_it_is_known_and_at_most_half_its_limit():
    limits = {"risk_limit": 0.5, "risk_min_steps": 4}
    assert not risk_after([], **limits).is_calm
    assert not risk_after([0.0] * 3, **limits).is_calm
    assert risk_after([0.0] * 4, **limits).is_calm
    assert risk_after([0.25] * 4, **limits).is_calm
    assert not risk_after([0.3125] * 4, **limits).is_calm
    assert not risk_after([0.0] * 4, carried=1.0, risk_limit=0.25, risk_min_steps=4).is_calm


def test_behind_a_prompt_that_scores_low_one_token_is_enough_to_be_calm():
    policy = policy_with(risk_limit=0.5, risk_min_steps=4, prompt_limit=0.5)
    for prompt_score, n_needed in ((0.0, 1), (0.25, 1), (0.3125, 4), (None, 4)):
        risk = RunningRisk(policy, prompt_score=prompt_score)
        n = 0
        while not risk.is_calm:
            risk.add(0.0)
            n += 1
        assert n == n_needed, prompt_score
    alarming = RunningRisk(policy, prompt_score=0.0)
    alarming.add(0.75)
    assert not alarming.is_calm


@given(many_scores, decays, shares, shares)
def test_a_calm_risk_refuses_nothing_by_its_limit(
    scores: list[float], decay: float, carried: float, limit: float
):
    risk = risk_after(scores, carried=carried, risk_decay=decay, risk_limit=limit)
    assert not (risk.is_calm and risk.refusal_reason() == "risk_limit")


@given(many_scores, decays, shares, st.integers(0, 40))
def test_a_prompts_score_raises_the_risk_and_never_lowers_it(
    scores: list[float], decay: float, asked: float, weight: int
):
    policy = policy_with(risk_decay=decay, prompt_weight=weight)
    risk, plain = RunningRisk(policy, prompt_score=asked), RunningRisk(policy)
    for score in scores:
        risk.add(score)
        plain.add(score)
        assert plain.value <= risk.value <= max([asked, *scores]) + 1e-9


@given(many_scores, shares, st.integers(1, 40))
def test_a_prompts_score_counts_as_so_many_tokens(scores: list[float], asked: float, weight: int):
    policy = policy_with(risk_decay=0.9999, prompt_weight=weight)
    risk = RunningRisk(policy, prompt_score=asked)
    for score in scores:
        risk.add(score)
    both = np.mean([*weight * [asked], *scores])
    assert risk.value == pytest.approx(max(np.mean(scores), both), abs=1e-9)


@given(many_scores, shares, st.integers(2, 40))
def test_an_answers_prior_counts_as_so_many_tokens(scores: list[float], carried: float, prior: int):
    risk = risk_after(scores, carried=carried, risk_decay=0.9999, answer_prior=prior)
    assert risk.value == pytest.approx(np.mean([*prior * [carried], *scores]), abs=1e-9)


def test_a_few_chance_scores_refuse_with_no_prior_alone():
    limits = {"risk_limit": 0.4, "risk_min_steps": 4, "hard_patience": 99}
    assert risk_after([0.9] * 4, **limits).refusal_reason() == "risk_limit"
    assert risk_after([0.9] * 4, answer_prior=8, **limits).refusal_reason() is None
    assert risk_after([0.9] * 8, answer_prior=8, **limits).refusal_reason() == "risk_limit"


def test_a_prompt_alone_refuses_nothing():
    policy = policy_with(risk_limit=0.0, risk_min_steps=1, prompt_weight=8)
    assert RunningRisk(policy, prompt_score=1.0).refusal_reason() is None


@given(many_scores, no_scores, st.integers(0, 8))
def test_what_is_no_score_cannot_join_the_risk(scores: list[float], value: float, weight: int):
    policy = policy_with(prompt_weight=weight)
    with pytest.raises(GuardError, match=r"carried from earlier turns .* cannot judge"):
        RunningRisk(policy, carried=value)
    with pytest.raises(GuardError, match=r"the prompt's score .* cannot judge"):
        RunningRisk(policy, prompt_score=value)
    risk = risk_after(scores)
    before = (risk.value, risk.max_value, risk.carry_over())
    with pytest.raises(GuardError, match=r"a token's score .* cannot judge"):
        risk.add(value)
    assert (risk.value, risk.max_value, risk.carry_over()) == before


@given(many_scores, st.floats(0.0, 1.0))
def test_a_prompt_above_its_limit_is_an_alarm_whatever_is_said(scores: list[float], limit: float):
    asked = 0.5
    policy = policy_with(prompt_limit=limit, risk_limit=1.0, risk_min_steps=3, hard_patience=1024)
    risk = RunningRisk(policy, prompt_score=asked)
    for score in scores:
        assert risk.is_calm <= (asked <= limit)
        risk.add(score)
    is_alarm = asked > limit  # from the first token on: a short answer must not end before it
    assert risk.refusal_reason() == ("risk_limit" if is_alarm else None)
    assert (risk.value >= asked) or not asked > limit


def test_above_its_prompts_limit_an_answer_is_steered_from_its_first_token_on():
    policy = policy_with(prompt_limit=0.4, steer_from=0.9, risk_limit=0.95, risk_gain=0.0)
    assert RunningRisk(policy, prompt_score=0.5).strength == policy.strength
    assert RunningRisk(policy, prompt_score=0.4).strength == 0.0


def test_steered_anew_an_answer_is_judged_by_what_it_says_and_the_conversation_remembers():
    policy = policy_with(prompt_limit=0.4, risk_limit=0.9, risk_min_steps=1)
    risk = RunningRisk(policy, prompt_score=0.5)
    risk.add(0.0)
    assert risk.refusal_reason() == "risk_limit"
    risk.begin_again([])
    risk.add(0.0)
    assert risk.refusal_reason() is None
    assert risk.value == 0.0
    assert risk.of_conversation == 0.5
