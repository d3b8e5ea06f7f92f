"""The guard seen from outside: it leaves safe answers alone, ends unsafe ones, and fails closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.errors import GuardError, SettingsError
from safesteer_edge.guard.events import Refused
from safesteer_edge.session.session import open_session
from tests.brittle_bundle import answer_logits, limit_within_answer, write_brittle_bundle
from tests.guarded_tiny import (
    ALARMED,
    DRAWN,
    GREEDY,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    REFUSAL_TEXT,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened, texts

PROMPTS = ("Hello there", "What is it?", "Count to ten.")
GUARDING = ("steer", "refuse")


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("mode", ["steer", "refuse", "monitor"])
@pytest.mark.parametrize("rerank", ["lazy", "eager"])
def test_a_guard_that_finds_nothing_changes_no_byte(
    guarded_tiny: GuardedTiny, mode: str, rerank: str, sampling
):
    unguarded = texts(guarded_tiny, None, PROMPTS, sampling=sampling)
    bundle = guarded_tiny.bundle(QUIET)
    guarded = texts(guarded_tiny, bundle, PROMPTS, sampling=sampling, guard=mode, rerank=rerank)
    assert guarded == unguarded


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("mode", GUARDING)
def test_a_guard_that_finds_everything_harmful_refuses(
    guarded_tiny: GuardedTiny, mode: str, sampling
):
    bundle = guarded_tiny.bundle(ALARMED)
    answers = texts(guarded_tiny, bundle, PROMPTS, sampling=sampling, guard=mode)
    assert answers == [REFUSAL_TEXT] * len(PROMPTS)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("bias", [WAVERING, ALARMED])
def test_a_monitor_scores_and_changes_nothing(guarded_tiny: GuardedTiny, bias: float, sampling):
    unguarded = texts(guarded_tiny, None, PROMPTS, sampling=sampling)
    with opened(
        guarded_tiny, guarded_tiny.bundle(bias), guard="monitor", sampling=sampling
    ) as session:
        turns = []
        for prompt in PROMPTS:
            session.reset()
            turns.append(ask(session, prompt))
        warnings = session.info.warnings
    assert [turn.text for turn in turns] == unguarded
    assert all(max(turn.scores) > POLICY.threshold for turn in turns)
    assert all(turn.ended.guard.risk is not None for turn in turns)
    assert not any(turn.ended.guard.refused for turn in turns)
    assert any("only watches" in warning for warning in warnings)


def test_steering_lowers_the_scores_of_what_is_said(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    means = {}
    for mode in ("monitor", "steer"):
        with opened(guarded_tiny, bundle, guard=mode, max_tokens=48) as session:
            means[mode] = ask(session, "Hello there").ended.guard.mean_score
    assert means["steer"] < means["monitor"] - 0.1


def test_a_larger_strength_and_a_smaller_threshold_are_taken(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, strength=50.0, threshold=0.1) as session:
        assert session.policy is not None
        assert (session.policy.strength, session.policy.threshold) == (50.0, 0.1)
        strict = ask(session, "Hello there").ended.guard
    with opened(guarded_tiny, bundle) as session:
        usual = ask(session, "Hello there").ended.guard
    assert strict.interventions > usual.interventions


@pytest.mark.parametrize(
    ("weaker", "problem"),
    [
        ({"strength": POLICY.strength - 0.1}, "below the bundle's"),
        ({"threshold": POLICY.threshold + 0.01}, "above the bundle's"),
    ],
)
@pytest.mark.parametrize("mode", ["steer", "refuse", "monitor"])
def test_a_setting_that_weakens_the_guard_is_refused(
    guarded_tiny: GuardedTiny, weaker: dict[str, float], problem: str, mode: str
):
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), guard=mode, **weaker)
    with pytest.raises(SettingsError, match=problem):
        open_session(settings)


@pytest.mark.parametrize("mode", ["steer", "refuse", "monitor"])
def test_a_probe_that_cannot_judge_a_token_ends_the_turn_closed(
    guarded_tiny: GuardedTiny, tmp_path: Path, mode: str
):
    limit, n_judged = limit_within_answer(guarded_tiny, "Hello there", n_tokens=40)
    assert n_judged >= 2
    bundle = write_brittle_bundle(guarded_tiny, tmp_path / "bundle", limit=limit)
    unguarded = texts(guarded_tiny, None, ["Hello there"], max_tokens=n_judged)
    with opened(guarded_tiny, bundle, guard=mode, max_tokens=40) as session:
        turn = ask(session, "Hello there")
        assert ask(session, "And then?").ended  # the session goes on
    refused = turn.events[-2]
    assert isinstance(refused, Refused)
    assert refused.reason == "guard_failed"
    assert "not in [0, 1]" in refused.detail
    assert len(turn.steps) == n_judged  # the token without a score was never counted
    assert turn.text == f"{unguarded[0]}\n\n{REFUSAL_TEXT}"
    assert turn.ended.finish_reason == "refused"


def test_a_probe_that_cannot_judge_the_prompt_ends_the_question(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    logit_by_prompt = {
        prompt: answer_logits(guarded_tiny, prompt, n_tokens=1)[0] for prompt in PROMPTS
    }
    worst, *others = sorted(PROMPTS, key=lambda prompt: logit_by_prompt[prompt])
    limit = (logit_by_prompt[worst] + logit_by_prompt[others[0]]) / 2
    bundle = write_brittle_bundle(guarded_tiny, tmp_path / "bundle", limit=limit)
    with opened(guarded_tiny, bundle) as session:
        with pytest.raises(GuardError, match="cannot judge"):
            next(session.ask(worst))
        assert len(session.conversation) == 0
        next(session.ask(others[0]))
