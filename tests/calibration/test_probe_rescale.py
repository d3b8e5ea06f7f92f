"""A rescaled probe gives the line on the logits, whatever form it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from safesteer_edge.calibration.probe_calibration import rescale_probe
from safesteer_edge.converters.probe_export import read_probe_graph
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.probe_graph import (
    DenseLayer,
    IsotonicFolds,
    ProbeGraph,
    SigmoidFolds,
)
from safesteer_edge.formats.probe_onnx import encode_probe
from safesteer_edge.probe.probe import OnnxProbe
from tests.bundle.linear_probe import probe_onnx, weights_for

WIDTH = 16
STATES = np.random.default_rng(3).standard_normal((64, WIDTH)).astype(np.float32)


def own_probe(head: Any = None, n_folds: int = 1) -> bytes:
    weights = np.random.default_rng(1).standard_normal((WIDTH, n_folds)) / 4
    layer = DenseLayer(weights, np.zeros(n_folds))
    graph = ProbeGraph(np.zeros(WIDTH), np.ones(WIDTH), (layer,), None, (1.5, -0.25), head)
    return encode_probe(graph, {"safesteer.layers": "1,2"})


FORMS = {
    "calibrated": own_probe(),
    "bare sigmoid": probe_onnx(weights_for(WIDTH)),
    "mean of sigmoids": own_probe(SigmoidFolds(np.array([1.0, 2.0]), np.array([0.1, -0.2])), 2),
    "isotonic": own_probe(
        IsotonicFolds(((np.array([-2.0, 0.0, 2.0]), np.array([0.05, 0.3, 0.9])),))
    ),
}


def scores_of(data: bytes) -> np.ndarray:
    with OnnxProbe.from_bytes(data, name="probe", device="cpu") as probe:
        return probe.score(STATES).astype(np.float64)


def moved(scores: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    logits = np.log(scores / (1 - scores))
    return 1 / (1 + np.exp(-(slope * logits + intercept)))


@pytest.mark.parametrize("form", FORMS)
def test_scores_move_along_the_line(form: str):
    old = scores_of(FORMS[form])
    new = scores_of(rescale_probe(FORMS[form], 1.7, 0.4, name="probe"))
    np.testing.assert_allclose(new, moved(old, 1.7, 0.4), atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_moving_twice_adds_no_more_nodes(form: str):
    once = rescale_probe(FORMS[form], 1.7, 0.4, name="probe")
    twice = rescale_probe(once, 0.5, -1.0, name="probe")
    assert len(onnx.load_from_string(once).graph.node) == len(
        onnx.load_from_string(twice).graph.node
    )
    expected = moved(moved(scores_of(FORMS[form]), 1.7, 0.4), 0.5, -1.0)
    np.testing.assert_allclose(scores_of(twice), expected, atol=3e-6)


def test_a_calibrated_probe_keeps_its_form_and_its_metadata():
    data = rescale_probe(FORMS["calibrated"], 2.0, 1.0, name="probe")
    graph, metadata = read_probe_graph(data, name="probe")
    assert graph.calibration == pytest.approx((3.0, 0.5))
    assert metadata == {"safesteer.layers": "1,2"}


def test_the_same_line_gives_the_same_bytes():
    first = rescale_probe(FORMS["isotonic"], 1.2, 0.1, name="probe")
    assert first == rescale_probe(FORMS["isotonic"], 1.2, 0.1, name="probe")


@pytest.mark.parametrize("line", [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (1.0, np.inf)])
def test_a_line_that_turns_scores_round_is_refused(line: tuple[float, float]):
    with pytest.raises(ProbeFileError, match="slope above 0"):
        rescale_probe(FORMS["calibrated"], *line, name="probe")


def test_what_is_no_probe_is_refused():
    with pytest.raises(ProbeFileError):
        rescale_probe(b"not an ONNX file", 1.0, 0.0, name="probe")
