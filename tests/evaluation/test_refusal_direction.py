"""The choice of a refusal direction, and what one is made of on a real engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from safesteer_edge.evaluation import baselines
from safesteer_edge.evaluation.baselines import (
    SOURCES,
    Steering,
    blocks_to_try,
    choose,
    find_direction,
    make_sources,
)
from safesteer_edge.requests.requests import load_requests
from safesteer_edge.session.runtime import open_runtime
from tests.guarded_tiny import GuardedTiny


def steering(refused: int, lost: int, *, layer: int = 3, kl: float = 0.1) -> Steering:
    return Steering("answers", layer, 0.2, 1.0, kl, refused, lost)


def test_the_one_that_refuses_most_beyond_what_it_loses_is_chosen():
    strong, fair, weak = steering(18, 15), steering(9, 3), steering(4, 1)
    assert choose([strong, fair, weak], n_harmful=20, n_others=20) == fair
    assert choose([strong, fair, weak], n_harmful=20, n_others=100) == strong


def test_ties_go_to_the_one_that_moves_less():
    far, near = steering(4, 1, kl=0.9), steering(4, 1, kl=0.2)
    assert choose([far, near], n_harmful=20, n_others=20) == near


@pytest.mark.parametrize("n_layer", [2, 4, 12, 30, 80])
def test_blocks_are_inside_the_model_and_never_the_first(n_layer: int):
    blocks = blocks_to_try(n_layer)
    assert blocks and all(1 <= block < n_layer for block in blocks)


def test_a_direction_is_one_block_of_the_chosen_strength(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(baselines, "N_PROMPTS", 2)
    session = replace(guarded_tiny.settings(None), guard="off")
    runtime = open_runtime(session, layers=range(4))
    try:
        sources = make_sources(runtime)
        harmful = load_requests(splits=("calibration",), labels=("harmful",))[:2]
        others = load_requests(splits=("calibration",), labels=("ordinary",))[:2]
        asked: list[float] = []

        def count(vector: np.ndarray | None) -> tuple[int, int]:
            asked.append(0.0 if vector is None else float(np.linalg.norm(vector)))
            return (2, 0) if len(asked) == 3 else (0, 0)

        found = find_direction(runtime, sources, harmful, others, count, lambda _: None)
    finally:
        runtime.close()
    assert set(sources.units) == set(SOURCES)
    for unit in sources.units.values():
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert asked[0] == 0.0 and len(asked) == 1 + len(found.curve)
    assert found.chosen == found.curve[1]  # the third that was asked: the second strength
    layer = found.chosen.layer
    assert np.flatnonzero(found.directions.any(axis=1)).tolist() == [layer]
    length = abs(found.chosen.strength) * sources.norms[layer]
    assert np.linalg.norm(found.directions) == pytest.approx(length, rel=1e-5)
    by_block = {(row.source, row.layer) for row in found.curve}
    assert len(found.curve) == 4 * len(by_block) == 12
    for source, layer in by_block:  # one sign for each
        signs = {np.sign(r.strength) for r in found.curve if (r.source, r.layer) == (source, layer)}
        assert len(signs) == 1
