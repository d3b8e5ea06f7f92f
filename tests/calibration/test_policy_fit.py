"""Choosing the guard's numbers: limits that benign answers seldom cross, by count and by chance."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesteer_edge.calibration.policy_fit import (
    NATS_TRIED,
    AnswerScores,
    AnswerTable,
    choose_policy,
    conformal_limit,
)
from safesteer_edge.errors import GuardError
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.risk import RunningRisk
from safesteer_edge.harvest.replay import FalseAlarmTargets
from tests.guard.scripted_answers import no_scores

Rows = list[NDArray[np.float64]]
TARGETS = FalseAlarmTargets(touched=0.05, ordinary_refused=0.02, borderline_refused=0.05)


def made_up_rows(rng: np.random.Generator, n_rows: int, level: float, n_tokens: int = 40) -> Rows:
    """Score trajectories around a level that differs from answer to answer, the prompt's first."""
    levels = np.clip(level + 0.12 * rng.standard_normal(n_rows), 0.01, 0.99)
    return [
        np.clip(each + 0.1 * rng.standard_normal(n_tokens), 0.0, 1.0) for each in levels.tolist()
    ]


def made_up_scores(seed: int, n_rows: int = 120) -> AnswerScores:
    rng = np.random.default_rng(seed)
    return AnswerScores(
        ordinary=made_up_rows(rng, n_rows, 0.1),
        borderline=made_up_rows(rng, n_rows, 0.25),
        harmless_twins=made_up_rows(rng, n_rows, 0.35),
        harmful=made_up_rows(rng, n_rows, 0.75),
    )


def share_refused(rows: Rows, policy: GuardPolicy, reason: str | None = None) -> float:
    """Share of trajectories that end in a refusal (for this reason), replayed token by token."""
    n_refused = 0
    for row in rows:
        risk = RunningRisk(policy, prompt_score=float(row[0]))
        for score in row[1:]:
            risk.add(float(score))
            found = risk.refusal_reason()
            if found is not None:
                n_refused += reason is None or found == reason
                break
    return n_refused / len(rows)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(9, 0.1, 9), (19, 0.1, 18), (99, 0.01, 99), (99, 0.05, 95)]
)
def test_the_limit_is_the_conformal_rank_by_hand(n: int, alpha: float, rank: int):
    values = np.random.default_rng(0).permutation(np.arange(1, n + 1)) / (n + 1)
    assert conformal_limit(values.tolist(), alpha) == pytest.approx(rank / (n + 1))


@pytest.mark.parametrize(("n", "alpha"), [(0, 0.05), (8, 0.1), (18, 0.05), (98, 0.01)])
def test_too_few_answers_promise_nothing_below_one(n: int, alpha: float):
    assert conformal_limit([0.1] * n, alpha) == 1.0


@given(
    values=st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=2, max_size=40),
    alpha=st.floats(0.01, 0.9),
)
def test_of_exchangeable_values_each_exceeds_the_others_limit_with_chance_alpha(
    values: list[float], alpha: float
):
    # The guarantee, counted out: whichever of n + 1 values is the fresh one, at most a share of
    # alpha of them exceeds the limit that the n others give.
    n_exceeding = sum(
        value > conformal_limit(values[:at] + values[at + 1 :], alpha)
        for at, value in enumerate(values)
    )
    assert n_exceeding / len(values) <= alpha + 1e-12


def test_the_guarantee_holds_for_fresh_draws():
    rng = np.random.default_rng(0)
    draws = rng.beta(1.0, 8.0, size=(4000, 41))
    exceeded = [row[40] > conformal_limit(row[:40].tolist(), 0.1) for row in draws]
    assert np.mean(exceeded) == pytest.approx(4 / 41, abs=0.015)  # ⌈0.9 · 41⌉ = 37 of 41


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_the_chosen_policy_meets_its_targets_on_its_own_answers(seed: int):
    scores = made_up_scores(seed)
    policy = choose_policy(scores, TARGETS).policy
    touched = np.mean([row[1:].max() > policy.threshold for row in scores.ordinary])
    assert touched <= TARGETS.touched
    touched = np.mean([row[1:].max() > policy.threshold for row in scores.borderline])
    assert touched <= TARGETS.borderline_touched
    # Both rules for refusals together keep to the target.
    assert share_refused(list(scores.ordinary), policy) <= TARGETS.ordinary_refused
    assert share_refused(list(scores.borderline), policy) <= TARGETS.borderline_refused


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10_000), limit=st.sampled_from([0.3, 1.0]))
def test_what_a_twins_answer_says_refuses_few_that_the_prompt_does_not(seed: int, limit: float):
    scores = made_up_scores(seed)
    policy = choose_policy(scores, TARGETS, prompt_limit=limit).policy
    n_open = sum(row[0] <= limit for row in scores.harmless_twins)
    ours = [row for row in scores.harmless_twins if row[0] <= limit]
    refused = share_refused(list(ours), policy) * n_open / len(scores.harmless_twins)
    assert refused <= TARGETS.twins_refused
    # It is a bound that binds: without it more of them are refused.
    loose = choose_policy(scores, replace(TARGETS, twins_refused=0.99), prompt_limit=limit).policy
    assert share_refused(list(ours), loose) >= share_refused(list(ours), policy)


def test_few_twins_do_not_keep_the_guard_from_acting():
    scores = made_up_scores(4)
    few = replace(scores, harmless_twins=scores.harmless_twins[:6])
    choice = choose_policy(few, TARGETS)
    assert choice.policy.risk_limit < 1.0
    assert choice.refused.harmful > 0.5


def test_the_shares_it_reports_are_those_of_its_policy():
    scores = made_up_scores(3)
    choice = choose_policy(scores, TARGETS)
    for name in ("ordinary", "borderline", "harmless_twins", "harmful"):
        expected = share_refused(list(getattr(scores, name)), choice.policy)
        assert getattr(choice.refused, name) == pytest.approx(expected)
    assert choice.refused.harmful > 0.85


def test_where_the_residual_is_out_of_reach_most_harmful_answers_are_refused():
    choice = choose_policy(made_up_scores(4), replace(TARGETS, residual=0.0))
    assert len(choice.curve) > 100
    most = max(row["harmful"] for row in choice.curve)
    assert choice.refused.harmful == most
    assert choice.meets_residual == (most == 1.0)


def test_where_it_is_reached_the_fewest_benign_answers_are_refused():
    choice = choose_policy(made_up_scores(4), replace(TARGETS, residual=0.3))
    assert choice.meets_residual and choice.refused.harmful >= 0.7
    benign = [
        row["ordinary"] + row["borderline"] + row["harmless_twins"]
        for row in choice.curve
        if row["harmful"] >= 0.7
    ]
    refused = choice.refused
    assert refused.ordinary + refused.borderline + refused.harmless_twins == min(benign)


def test_the_policy_is_a_row_of_its_curves():
    choice = choose_policy(made_up_scores(5), TARGETS)
    policy = choice.policy
    names = ("hard_threshold", "hard_patience", "risk_decay", "risk_min_steps", "risk_limit")
    assert {name: getattr(policy, name) for name in names} in [
        {name: row[name] for name in names} for row in choice.curve
    ]
    assert policy.strength in [row["strength"] for row in choice.strengths]
    chances = [row["chance"] for row in choice.thresholds]
    assert chances == sorted(chances) and TARGETS.touched in chances
    for looser, stricter in itertools.pairwise(choice.thresholds):
        assert looser["threshold"] >= stricter["threshold"]
        assert looser["harmful"] <= stricter["harmful"]


def test_the_strength_is_the_least_that_leaves_harmful_tokens_the_wanted_chance():
    scores = made_up_scores(5)
    policy = choose_policy(scores, TARGETS).policy
    above = np.concatenate([row[row > policy.threshold] for row in scores.harmful])

    def kept(strength: float) -> float:
        return float(np.exp(-strength * (above - policy.threshold)).mean())

    nats = policy.strength * (1.0 - policy.threshold)
    assert kept(policy.strength) <= TARGETS.kept or nats == pytest.approx(NATS_TRIED[-1])
    if nats > NATS_TRIED[0]:
        assert kept(policy.strength / 2) > TARGETS.kept


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    decay=st.sampled_from([0.0, 0.85, 0.98]),
    weight=st.sampled_from([0, 16]),
    prior=st.sampled_from([0, 4]),
)
def test_the_table_counts_as_the_running_risk_does(
    seed: int, decay: float, weight: int, prior: int
):
    rng = np.random.default_rng(seed)
    rows = [rng.random(int(n)) for n in rng.integers(1, 30, 12)]
    policy = GuardPolicy(
        strength=1.0,
        threshold=0.1,
        hard_threshold=0.5,
        hard_patience=3,
        risk_limit=0.6,
        risk_decay=decay,
        risk_min_steps=4,
        risk_gain=1.0,
        conversation_carry=0.0,
        prompt_weight=weight,
        answer_prior=prior,
    )
    table = AnswerTable(rows)
    by_risk = table.largest_risks(decay, 4, weight, prior) > 0.6
    by_run = table.longest_runs(0.5) >= 3
    assert float(np.mean(by_risk | by_run)) == share_refused(rows, policy)


def test_what_has_no_value_is_null_in_json():
    scores = replace(made_up_scores(2), harmless_twins=[])
    content = choose_policy(scores, TARGETS).to_json()
    assert content["refused"]["harmless_twins"] is None
    json.dumps(content, allow_nan=False)


def test_too_few_benign_answers_leave_refusals_off():
    # 20 answers cannot promise 1 %: no rule may refuse what some benign answers do all along.
    def rows(*levels: float) -> Rows:
        return [np.full(40, level) for level in levels]

    scores = AnswerScores(
        ordinary=rows(*np.linspace(0.05, 0.6, 20)),
        borderline=rows(*np.linspace(0.05, 0.4, 20)),
        harmless_twins=[],
        harmful=rows(*np.linspace(0.5, 0.95, 20)),
    )
    choice = choose_policy(scores, FalseAlarmTargets(touched=0.2, borderline_touched=0.2))
    assert choice.policy.risk_limit == 1.0
    assert (choice.refused.ordinary, choice.refused.borderline) == (0.0, 0.0)
    assert math.isnan(choice.refused.harmless_twins)


@given(no_scores, st.sampled_from(["ordinary", "borderline", "harmless_twins", "harmful"]))
@settings(max_examples=20, deadline=None)
def test_no_limit_is_chosen_from_what_is_no_score(value: float, name: str):
    scores = made_up_scores(0, n_rows=4)
    getattr(scores, name)[2][7] = value
    with pytest.raises(GuardError, match="cannot choose limits"):
        choose_policy(scores, TARGETS)


def test_a_prompts_limit_is_exceeded_by_as_many_benign_prompts_as_may_be_stopped():
    prompts = {
        "ordinary": np.linspace(0.0, 0.2, 2_000),
        "borderline": np.linspace(0.0, 0.6, 2_000),
    }
    scores = replace(made_up_scores(4), prompts=prompts)
    limit = choose_policy(scores, TARGETS).policy.prompt_limit
    shares = {label: np.mean(values > limit) for label, values in prompts.items()}
    assert shares["ordinary"] <= TARGETS.ordinary_refused
    assert shares["borderline"] == pytest.approx(TARGETS.borderline_refused, abs=0.001)


def test_too_few_prompts_have_no_limit_of_their_own():
    scores = replace(made_up_scores(4), prompts={"ordinary": np.linspace(0.0, 0.2, 9)})
    assert choose_policy(scores, TARGETS).policy.prompt_limit == 1.0
    assert choose_policy(made_up_scores(4), TARGETS).policy.prompt_limit == 1.0
