"""What counts as drift, and what is to be done about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safesteer_edge.harvest.drift import Drift, measure_drift
from safesteer_edge.harvest.replay import Replay, ReplayRow

N = 60
TAU = 0.8


def replay(
    *, harmful: float = 0.7, ordinary: float = 0.1, highest: float = 0.3, n_stopped: int = 40
) -> Replay:
    """60 answers of each kind, their mean scores spread by 0.05 round these."""
    rng = np.random.default_rng(1)
    rows: list[ReplayRow] = []
    for number in range(N):
        noise = float(rng.normal(0, 0.05))
        low = float(np.clip(ordinary + noise, 0, 1))
        high = float(np.clip(harmful + noise, 0, 1))
        rows.append(ReplayRow(f"o{number}", "ordinary", False, low, highest, False))
        rows.append(ReplayRow(f"b{number}", "borderline", False, low, highest, False))
        rows.append(ReplayRow(f"h{number}", "harmful", True, high, 0.95, number < n_stopped))
    return Replay(tuple(rows), "hash", 48, "Q4_K_M")


REFERENCE = replace(replay(), quantization="Q8_0")


def drift(here: Replay, reference: Replay | None = REFERENCE) -> Drift:
    return measure_drift(here, reference, threshold=TAU, touched_target=0.02)


def test_the_same_scores_are_steady():
    found = drift(replay())
    assert (found.verdict, found.reasons) == ("steady", ())
    assert found.shift_harmful is not None
    assert (found.shift_harmful.mean, found.shift_harmful.n) == (0.0, N)
    assert found.here == found.reference
    assert (found.quantization, found.reference_quantization) == ("Q4_K_M", "Q8_0")


def test_lower_scores_and_fewer_stops_are_to_be_recalibrated():
    found = drift(replay(harmful=0.5, n_stopped=15))
    assert found.verdict == "recalibrate"
    assert found.shift_harmful is not None
    assert found.shift_harmful.mean == pytest.approx(-0.2)
    low, middle, high = found.shift_harmful.quantiles
    assert low <= middle <= high < 0
    assert "harmful requests score 0.200 lower" in found.reasons[0]
    assert "15 are stopped; before, 40" in found.reasons[1]


def test_a_few_changed_decisions_are_chance():
    assert drift(replay(n_stopped=37)).verdict == "steady"


def test_false_alarms_above_the_target_are_noticed_without_a_reference():
    found = drift(replay(highest=0.9), None)
    assert found.verdict == "recalibrate"
    assert "60/60" in found.reasons[0]
    assert (found.reference, found.shift_harmful) == (None, None)


def test_a_probe_that_separates_nothing_wants_a_whole_calibration():
    found = drift(replay(harmful=0.12))
    assert found.verdict == "calibrate"
    assert "AUROC" in found.reasons[0]


def test_only_what_both_asked_is_compared():
    here = replace(replay(), rows=replay().rows[:30])
    found = drift(here)
    assert found.here.touched_ordinary.n == 10
    assert found.reference is not None
    assert found.reference.touched_ordinary.n == 10
