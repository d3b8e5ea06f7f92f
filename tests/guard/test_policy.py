"""The guard's numbers: ranges, and that a user can tighten them and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.policy import GuardPolicy
from tests.guard.scripted_answers import POLICY

LIMITS: dict[str, tuple[float, float]] = {
    "strength": (1e-6, 1e6),
    "threshold": (0.0, 0.95),  # up to POLICY's hard_threshold
    "hard_threshold": (0.5, 1.0),  # down to POLICY's threshold
    "hard_patience": (1, 1024),
    "risk_limit": (0.0, 1.0),
    "risk_decay": (0.0, 0.9999),
    "risk_min_steps": (1, 1024),
    "risk_gain": (0.0, 1e3),
    "conversation_carry": (0.0, 1.0),
}


def changed(name: str, value: Any) -> GuardPolicy:
    return replace(POLICY, **{name: value})


@pytest.mark.parametrize(("name", "limits"), LIMITS.items())
def test_a_value_at_either_limit_is_taken_and_one_beyond_is_refused(
    name: str, limits: tuple[float, float]
):
    low, high = limits
    assert getattr(changed(name, low), name) == low
    assert getattr(changed(name, high), name) == high
    for beyond in (low - 1e-7, high + 1e-4, -1.0, 1e7):
        with pytest.raises(SettingsError, match=f"guard .*{name}"):
            changed(name, beyond)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), 10**400],
    ids=["nan", "inf", "-inf", "huge"],
)
def test_a_value_that_is_no_finite_number_is_refused(name: str, value: float):
    with pytest.raises(SettingsError, match=f"guard {name}"):
        changed(name, value)


def test_a_hard_threshold_below_the_threshold_is_refused_with_both_values():
    with pytest.raises(SettingsError, match=r"hard_threshold 0\.4 is below threshold 0\.5"):
        changed("hard_threshold", 0.4)
    assert changed("hard_threshold", 0.5).hard_threshold == 0.5


@given(st.none() | st.floats(8.0, 1e6), st.none() | st.floats(0.0, 0.5))
def test_tightening_changes_what_it_is_given_and_nothing_else(
    strength: float | None, threshold: float | None
):
    tightened = POLICY.tightened(strength=strength, threshold=threshold)
    assert tightened.strength == (POLICY.strength if strength is None else strength)
    assert tightened.threshold == (POLICY.threshold if threshold is None else threshold)
    assert replace(tightened, strength=8.0, threshold=0.5) == POLICY


@given(st.floats(-1e9, 8.0, exclude_max=True))
def test_a_weaker_strength_is_refused_with_the_remedy(strength: float):
    with pytest.raises(SettingsError, match=r"below the bundle's 8\.0.*guard mode 'monitor'"):
        POLICY.tightened(strength=strength, threshold=None)


@given(st.floats(0.5, 1e9, exclude_min=True))
def test_a_higher_threshold_is_refused_with_the_remedy(threshold: float):
    with pytest.raises(SettingsError, match=r"above the bundle's 0\.5.*guard mode 'monitor'"):
        POLICY.tightened(strength=None, threshold=threshold)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tightening_to_no_number_is_refused(value: float):
    with pytest.raises(SettingsError):
        POLICY.tightened(strength=value, threshold=None)
    with pytest.raises(SettingsError):
        POLICY.tightened(strength=None, threshold=value)


@pytest.mark.parametrize(
    ("changes", "can_steer"),
    [
        ({"strength": 1e-6}, False),
        ({"strength": 1.3, "threshold": 0.5, "risk_gain": 0.0}, False),  # 0.65 of 0.69 nats
        ({"strength": 1.3, "threshold": 0.5, "risk_gain": 0.1}, True),
        ({"strength": 1e6, "threshold": 0.9991, "hard_threshold": 1.0}, False),
        ({"strength": 1e6, "threshold": 0.999, "hard_threshold": 1.0}, True),
    ],
)
def test_steering_that_leaves_the_worst_candidate_most_of_its_chance_is_none(
    changes: dict[str, float], can_steer: bool
):
    assert replace(POLICY, **changes).can_steer is can_steer  # pyright: ignore[reportArgumentType]  # one is an int


@pytest.mark.parametrize(
    ("changes", "can_refuse"),
    [
        ({"risk_limit": 1.0, "hard_threshold": 1.0}, False),
        ({"risk_limit": 0.9999, "hard_threshold": 0.9999}, False),
        ({"risk_limit": 1.0, "hard_patience": 1024}, False),
        ({"risk_min_steps": 1024, "hard_patience": 1024}, False),
        ({"risk_limit": 0.999, "hard_patience": 1024}, True),
        ({"risk_limit": 1.0, "hard_threshold": 0.999, "hard_patience": 1023}, True),
    ],
)
def test_limits_that_nothing_exceeds_refuse_nothing(changes: dict[str, float], can_refuse: bool):
    assert replace(POLICY, **changes).can_refuse is can_refuse  # pyright: ignore[reportArgumentType]  # some are ints
