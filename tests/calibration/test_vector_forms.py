"""The directions that pairs of states give, by hand; and what of them a block gets."""

from __future__ import annotations

import numpy as np
import pytest

from safesteer_edge.calibration.vector_fit import (
    VECTOR_FORMS,
    StatePairs,
    bands_for,
    make_directions,
    on_band,
)

LAYERS = (0, 1, 2)
N_LAYER = 4


def planted(drift: np.ndarray, safety: np.ndarray, *, noise: float = 0.0) -> StatePairs:
    """Pairs whose media side lacks `drift`, and of harmful ones `safety` as well."""
    rng = np.random.default_rng(0)
    is_harmful = np.arange(40) % 2 == 0
    text = rng.standard_normal((40, len(LAYERS), 4))
    moved = drift + np.where(is_harmful[:, np.newaxis, np.newaxis], safety, 0.0)
    media = text - moved + noise * rng.standard_normal(text.shape)
    return StatePairs(LAYERS, text.astype(np.float32), media.astype(np.float32), is_harmful)


def test_the_mean_difference_moves_media_to_where_text_lies():
    drift, safety = np.array([1.0, 0, 0, 0]), np.array([0, 2.0, 0, 0])
    directions = make_directions(planted(drift, safety), "mean", N_LAYER)
    np.testing.assert_allclose(directions[1:3], [[1, 1, 0, 0]] * 2, atol=1e-5)
    assert not directions[0].any()  # llama.cpp cannot steer it
    assert not directions[3].any()  # nothing was harvested there


def test_what_harmless_pairs_share_can_be_left_out():
    drift, safety = np.array([3.0, 0, 0, 0]), np.array([0, 2.0, 0, 0])
    rows = make_directions(planted(drift, safety), "drift-removed", N_LAYER)[1:3]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows / lengths, [[0, 1, 0, 0]] * 2, atol=1e-6)


def test_the_first_principal_direction_points_the_means_way():
    drift = np.array([-2.0, 0, 0, 0])
    rows = make_directions(planted(drift, 0 * drift, noise=0.1), "principal", N_LAYER)[1:3]
    assert (rows[:, 0] < -1.9).all()
    assert (np.abs(rows[:, 1:]) < 0.2).all()


@pytest.mark.parametrize("form", VECTOR_FORMS)
def test_all_forms_are_as_long_as_the_mean(form):
    pairs = planted(np.array([1.0, 0.5, 0, 0]), np.array([0, 2.0, 0, 1.0]), noise=0.5)
    lengths = np.linalg.norm(make_directions(pairs, form, N_LAYER)[1:3], axis=1)
    mean = np.linalg.norm(make_directions(pairs, "mean", N_LAYER)[1:3], axis=1)
    np.testing.assert_allclose(lengths, mean, rtol=1e-5)


def test_blocks_share_a_scale():
    directions = np.ones((5, 3), dtype=np.float32)
    directions[0] = 0
    steered = on_band(directions, (2, 3), 3.0)
    np.testing.assert_allclose(steered[:, 0], [0, 0, 1.5, 1.5, 0])
    assert (directions[1:] == 1).all()


@pytest.mark.parametrize("n_layer", [2, 3, 4, 12, 30, 80])
def test_bands_leave_out_the_first_block(n_layer: int):
    bands = bands_for(tuple(range(n_layer - 1)))
    assert bands or n_layer == 2
    for first, last in bands:
        assert 1 <= first <= last < n_layer - 1 or n_layer == 3
