"""Scores of a converted probe, beside those of the object that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from safesteer_edge.probe.probe import OnnxProbe

TOLERANCE = 1e-5
N_FEATURES = 24


def wide_states(n_states: int = 400, n_features: int = N_FEATURES, seed: int = 1) -> Any:
    """Float32 states whose features differ in spread and centre, as hidden states' do."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(7).uniform(0.2, 8.0, n_features)
    centre = np.random.default_rng(8).standard_normal(n_features) * 5
    return (rng.standard_normal((n_states, n_features)) * spread + centre).astype(np.float32)


def labels_of(states: Any) -> NDArray[np.int64]:
    """Labels that a linear probe finds with some mistakes."""
    rng = np.random.default_rng(3)
    direction = np.random.default_rng(4).standard_normal(states.shape[1]) / states.std(axis=0)
    margin = (states - states.mean(axis=0)) @ direction
    return (margin + rng.standard_normal(len(states)) * 2 > 0).astype(np.int64)


def scores_of(path: Path, states: Any) -> NDArray[np.float32]:
    """What a probe.onnx scores, in onnxruntime, after onnx's own check of the file."""
    data = path.read_bytes()
    onnx.checker.check_model(data, full_check=True)
    with OnnxProbe.from_bytes(data, name=str(path), device="cpu") as probe:
        return probe.score(states)


def assert_parity(path: Path, states: Any, expected: Any) -> None:
    """The file's scores are the object's, within 1e-5."""
    np.testing.assert_allclose(scores_of(path, states), expected, rtol=0, atol=TOLERANCE)
