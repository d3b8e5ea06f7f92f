"""The alignment vector of a tiny model that sees: made, tried, chosen or given up, and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.calibration.vector_fit import VectorSettings, part_of
from safesteer_edge.calibration.vector_stage import VectorResult, VectorTask, fit_vector
from safesteer_edge.harvest.answers import HarvestedAnswer, HarvestPlan
from safesteer_edge.harvest.cache import HarvestSettings
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, draw
from safesteer_edge.harvest.run import Harvest, harvest
from safesteer_edge.harvest.vector_trial import ScoreStates
from safesteer_edge.requests.requests import Label, Request
from tests.guarded_tiny import GuardedTiny
from tests.made_up_answers import made_up_request

PROBE_LAYERS = (1, 2)
LABELS: tuple[Label, ...] = ("harmful", "harmless")
REQUESTS: tuple[Request, ...] = tuple(
    replace(made_up_request(label, number), text=f"{'zz' if label == 'harmful' else 'ab'} {number}")
    for number in range(30)
    for label in LABELS
)
UNDRAWABLE: tuple[Request, ...] = tuple(
    replace(made_up_request(label, number), text=f"{number}\u3002")  # no page font has this stop
    for number in range(30, 50)
    for label in LABELS
)
SETTINGS = VectorSettings(
    kl_limit=10.0, scales=(0.5, 2.0), n_choosing=4, n_confirming=4, n_least=2, n_tokens=3
)


@pytest.fixture(scope="module")
def harvested(guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory) -> Harvest:
    """Pairs as text and drawn, one token each."""
    session = guarded_tiny.settings(None, mmproj=guarded_tiny.projector)
    settings = HarvestSettings(
        session, HarvestPlan(1, 1, 1, 1), PROBE_LAYERS, cache=tmp_path_factory.mktemp("cache")
    )
    return harvest(settings, (*REQUESTS, *UNDRAWABLE), lambda *_: None)


def fitted(
    tiny: GuardedTiny, harvested: Harvest, settings: VectorSettings = SETTINGS
) -> tuple[VectorResult, list[HarvestedAnswer]]:
    """The result, and the answers that the probe was fitted on."""
    seen: list[HarvestedAnswer] = []

    def fit(answers: Sequence[HarvestedAnswer]) -> ScoreStates:
        seen.extend(answers)
        weights = tiny.weights.astype(np.float64)

        def score(states: NDArray[np.floating]) -> NDArray[np.float64]:
            return 1 / (1 + np.exp(-(states @ weights + tiny.offset)))

        return score

    task = VectorTask(
        session=tiny.settings(None, mmproj=tiny.projector),
        probe_layers=PROBE_LAYERS,
        fit=fit,
        residual_norms=tiny.residual_norms,
        architecture=tiny.info.architecture,
        settings=settings,
    )
    return fit_vector(harvested, task, lambda *_: None), seen


@pytest.fixture(scope="module")
def result(guarded_tiny: GuardedTiny, harvested: Harvest) -> VectorResult:
    return fitted(guarded_tiny, harvested)[0]


def test_every_form_sign_and_gate_is_tried_and_recorded(result: VectorResult):
    tried = result.record["tried"]
    assert {row["form"] for row in tried} == {"mean", "drift-removed", "principal"}
    assert {row["sign"] for row in tried} == {1, -1}
    assert {row["gate"] is None for row in tried} == {True, False}
    assert all(row["kl"] >= 0 for row in tried)
    # A gated vector moves fewer prompts than the same one that is always on.
    always = {(r["form"], r["sign"], *r["layers"], r["scale"]): r for r in tried if not r["gate"]}
    for row in tried:
        if row["gate"] is not None:
            key = (row["form"], row["sign"], *row["layers"], row["scale"])
            assert row["kl"] <= always[key]["kl"] + 1e-9


def test_the_verdict_is_on_prompts_that_took_no_part(result: VectorResult):
    record = result.record
    low, gain, high = record["confirmed"]["auroc_gain"]
    assert low <= gain <= high
    assert record["enabled"] == (max(low, record["confirmed"]["refusal_gain"][0]) > 0)
    assert record["enabled"] == (result.parts is not None)
    assert record["why"]
    assert set(record["pictures"]["points"]) == {
        f"{where} {label}" for where in ("text", "media", "media with vector") for label in LABELS
    }


def test_the_probe_that_judges_saw_none_of_them(guarded_tiny: GuardedTiny, harvested: Harvest):
    _, seen = fitted(guarded_tiny, harvested)
    assert seen and {part_of(answer.request) for answer in seen} == {"making"}


def test_both_of_a_pair_are_in_one_part():
    parts = {request.pair_id: part_of(request) for request in REQUESTS}
    assert all(part_of(request) == parts[request.pair_id] for request in REQUESTS)
    assert set(parts.values()) == {"making", "choosing", "confirming"}


def test_nothing_is_enabled_beyond_the_limit(guarded_tiny: GuardedTiny, harvested: Harvest):
    result, _ = fitted(guarded_tiny, harvested, replace(SETTINGS, kl_limit=0.0))
    assert result.parts is None
    assert "exceeds a KL of 0" in result.record["why"]


def test_too_little_is_a_result_that_says_so(guarded_tiny: GuardedTiny, harvested: Harvest):
    result, _ = fitted(guarded_tiny, harvested, replace(SETTINGS, n_least=12))
    assert result.parts is None
    assert "too few" in result.record["why"]


def test_a_vector_that_helps_is_written_and_loads(
    guarded_tiny: GuardedTiny, harvested: Harvest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Everything is real but the verdict: on random states nothing helps reliably.
    monkeypatch.setattr(
        "safesteer_edge.calibration.vector_fit.with_interval", lambda *_, **__: (0.1, 0.2, 0.3)
    )
    result, _ = fitted(guarded_tiny, harvested, replace(SETTINGS, kl_limit=100.0))
    assert result.parts is not None and result.record["enabled"]
    parts = replace(guarded_tiny.parts(), vector=result.parts)
    folder = write_bundle(tmp_path / "guard", parts)
    with load_bundle(folder, guarded_tiny.info, device="cpu") as bundle:
        vector = bundle.vector_for("image")
        assert vector is not None and bundle.vector_for("audio") is None
        chosen = result.record["confirmed"]
        first, last = chosen["layers"]
        assert np.flatnonzero(vector.directions.any(axis=1)).tolist() == [*range(first, last + 1)]
        assert bundle.vector_gate == pytest.approx(chosen["gate"], abs=1e-5)


@pytest.mark.parametrize("carrier", DRAWN_CARRIERS)
def test_a_request_is_drawn_the_same_each_time_and_unlike_others(carrier):
    first, second = (draw(REQUESTS[index], carrier, 224) for index in (0, 2))
    assert first.pixels.shape == (224, 224, 3)
    assert first.sha256 == draw(REQUESTS[0], carrier, 224).sha256 != second.sha256


def test_a_gain_that_is_no_number_enables_nothing(
    guarded_tiny: GuardedTiny, harvested: Harvest, monkeypatch: pytest.MonkeyPatch
):
    unknown = (float("nan"),) * 3
    monkeypatch.setattr(
        "safesteer_edge.calibration.vector_fit.with_interval", lambda *_, **__: unknown
    )
    result, _ = fitted(guarded_tiny, harvested, replace(SETTINGS, kl_limit=100.0))
    assert result.parts is None and "no gain" in result.record["why"]
