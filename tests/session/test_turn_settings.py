"""What may change between two turns, and what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.policy import GUARD_MODES
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.settings import SessionSettings
from tests.guard.scripted_answers import no_scores
from tests.guarded_tiny import (
    ALARMED,
    DRAWN,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    REFUSAL_TEXT,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened, texts


def test_one_model_answers_with_the_guard_on_and_off(guarded_tiny: GuardedTiny):
    unguarded = texts(guarded_tiny, None, ["Hello there"], sampling=DRAWN)
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED), sampling=DRAWN) as session:
        settings = session.turn_settings
        answers = []
        for guard in ("steer", "off", "steer", "monitor"):
            session.reset()
            session.change(replace(settings, guard=guard))
            turn = ask(session, "Hello there")
            assert turn.ended.guard.mode == guard
            assert (turn.ended.guard.bundle is None) == (guard == "off")
            assert (turn.ended.guard.risk is None) == (guard == "off")
            answers.append(turn.text)
    assert answers == [REFUSAL_TEXT, *unguarded, REFUSAL_TEXT, *unguarded]


def test_weaker_modes_are_said_as_long_as_they_last(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        settings = session.turn_settings
        assert session.info.warnings == ()
        for guard, words in (("off", "guard is off"), ("monitor", "only watches")):
            session.change(replace(settings, guard=guard))
            assert words in session.info.warnings[0]
            assert session.info.guard == guard
        session.change(settings)
        assert session.info.warnings == ()


@given(no_scores)
def test_a_number_that_no_guard_has_cannot_be_set_whatever_the_mode(value: float):
    for guard in GUARD_MODES:
        for made in (TurnSettings, SessionSettings):
            with pytest.raises(SettingsError, match="guard threshold is"):
                made(guard=guard, threshold=value)
            if not 0 < value < float("inf"):
                with pytest.raises(SettingsError, match="guard strength is"):
                    made(guard=guard, strength=value)


@pytest.mark.parametrize("guard", ["steer", "refuse", "monitor"])
@pytest.mark.parametrize("wrong", [{"strength": 7.0}, {"threshold": 0.6}])
def test_a_guard_is_never_weaker_than_its_bundle(
    guarded_tiny: GuardedTiny, guard: str, wrong: dict[str, float]
):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        before = session.turn_settings
        with pytest.raises(SettingsError, match="bundle's"):
            session.change(replace(before, guard=guard, **wrong))
        assert session.turn_settings == before


def test_a_guard_that_is_not_loaded_is_not_pretended(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, None) as session, pytest.raises(SettingsError, match="without a gua"):
        session.change(TurnSettings(guard="monitor"))


def test_no_more_candidates_than_the_session_was_opened_for(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING)) as session:
        settings = session.turn_settings
        wide = replace(settings, sampling=replace(settings.sampling, top_k=9))
        with pytest.raises(SettingsError, match=r"top_k is 9.*8 candidates"):
            session.change(wide)
        session.change(replace(wide, guard="off"))
        assert ask(session, "Hello there").text


def test_strength_and_length_change_with_the_next_turn(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        settings = session.turn_settings
        session.change(replace(settings, strength=100.0, threshold=0.1, max_tokens=5))
        assert session.policy is not None
        assert (session.policy.strength, session.policy.threshold) == (100.0, 0.1)
        assert len(ask(session, "Hello there").steps) == 5


def test_switching_the_guard_off_does_not_wash_a_conversation_clean(guarded_tiny: GuardedTiny):
    policy = replace(PATIENT_POLICY, conversation_carry=0.5, risk_limit=0.8)
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, policy)) as session:
        settings = session.turn_settings
        session.change(replace(settings, guard="off"))
        ask(session, "Hello there")
        session.change(settings)
        turn = ask(session, "And then?")
    assert turn.steps[0].risk == pytest.approx((0.5 * 0.8 + turn.scores[0]) / 2)


@pytest.mark.parametrize("wrong", [{"guard": "on"}, {"rerank": "fast"}, {"max_tokens": 0}])
def test_a_setting_out_of_range_is_refused_by_name(wrong: dict[str, object]):
    (name,) = wrong
    with pytest.raises(SettingsError, match=name):
        TurnSettings(**wrong)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def test_the_bundles_own_numbers_are_told(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), strength=50.0) as session:
        info = session.info
    assert info.policy == POLICY
    assert (info.n_candidates, info.sees, info.hears) == (8, False, False)
