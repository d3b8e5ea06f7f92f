"""Settings of the sampler: ranges, and when penalties are on."""

from __future__ import annotations

from typing import Any

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.policy import MAX_TOP_K, SamplingSettings

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 10.0),
    "top_k": (1, MAX_TOP_K),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 10.0),
    "repeat_last_n": (0, 65536),
    "frequency_penalty": (-10.0, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "seed": (0, 2**32 - 2),
}


def settings_with(name: str, value: Any) -> SamplingSettings:
    return SamplingSettings(**{name: value})


@pytest.mark.parametrize(("name", "limits"), LIMITS.items())
def test_a_value_at_either_limit_is_taken_and_one_beyond_is_refused(
    name: str, limits: tuple[float, float]
):
    for value in limits:
        assert getattr(settings_with(name, value), name) == value
    for beyond in (limits[0] - 0.001, limits[1] + 1, -11):
        with pytest.raises(SettingsError, match=f"{name} is .*; expected"):
            settings_with(name, beyond)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), 10**400],
    ids=["nan", "inf", "-inf", "huge"],
)
def test_a_value_that_is_no_finite_number_is_refused(name: str, value: float):
    with pytest.raises(SettingsError, match=name):
        settings_with(name, value)


def test_llama_cpps_seed_for_a_random_seed_is_refused():
    with pytest.raises(SettingsError, match="seed is 4294967295"):
        SamplingSettings(seed=0xFFFFFFFF)


@pytest.mark.parametrize("name", ["repeat_penalty", "frequency_penalty", "presence_penalty"])
def test_any_penalty_switches_penalties_on(name: str):
    assert not SamplingSettings().has_penalties
    assert settings_with(name, 1.1).has_penalties
