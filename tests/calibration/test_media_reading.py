"""Drawn requests teach a probe only where the model's states say that it read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.calibration.separation import reading_of_media
from safesteer_edge.harvest.cache import HarvestCache, StateShape
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, Carrier
from safesteer_edge.harvest.run import Harvest
from safesteer_edge.harvest.units import PlannedRequest
from safesteer_edge.requests.requests import Label
from tests.made_up_answers import made_up_answer, made_up_request

LABELS: tuple[Label, ...] = ("harmful", "harmless")


def drawn_harvest(folder: Path, *, shift: float, carrier: Carrier = "list") -> Harvest:
    """Pairs whose harmful one lies `shift` deviations away in each of two layers."""
    rng = np.random.default_rng(0)
    cache, units = HarvestCache(folder), []
    for number in range(60):
        for label in LABELS:
            request = made_up_request(label, number)
            states = rng.standard_normal((2, 16)) + (shift if label == "harmful" else 0.0)
            unit = PlannedRequest(request, carrier, key=f"{label}-{number}")
            cache.put(unit.key, [made_up_answer(states, request)], StateShape((0, 1), (1,), 8))
            units.append(unit)
    return Harvest(cache, StateShape((0, 1), (1,), 8), tuple(units))


@pytest.mark.parametrize(("shift", "understood"), [(1.0, True), (0.0, False)])
def test_a_model_reads_if_its_states_tell_harmful_pictures_from_their_twins(
    tmp_path: Path, shift: float, understood: bool
):
    reading = reading_of_media(drawn_harvest(tmp_path, shift=shift), (0, 1))
    assert reading["understood"] is understood
    low, high = reading["interval"]
    assert low <= reading["auroc"] <= high
    assert sum(reading["n"]) < 120  # those that the discriminant was not made from


def test_nothing_is_said_where_nothing_was_drawn(tmp_path: Path):
    assert reading_of_media(drawn_harvest(tmp_path, shift=1.0, carrier="text"), (0, 1)) == {}


def test_what_was_drawn_can_be_left_out(tmp_path: Path):
    harvested = drawn_harvest(tmp_path, shift=0.0)
    first = harvested.units[0]
    own = replace(first, carrier="picture")
    mixed = replace(harvested, units=(*harvested.units, own))
    assert mixed.without_drawn().units == (own,)
    assert all(unit.carrier in DRAWN_CARRIERS for unit in harvested.units)
