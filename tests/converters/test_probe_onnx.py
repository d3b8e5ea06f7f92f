"""Probes written as ONNX give what NumPy gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_graph import (
    DenseLayer,
    ProbeGraph,
)
from safesteer_edge.formats.probe_onnx import (
    encode_probe,
)
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.processes.native_libraries import import_onnxruntime

TOLERANCE = 1e-5
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def run(data: bytes, states: Any) -> Any:
    session = import_onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"hidden_state": states})[0]


def expected_scores(graph: ProbeGraph, states: Any) -> Any:
    """The same in NumPy, in float64."""
    x = (states.astype(np.float64) - graph.mean) / graph.scale
    if graph.components is not None:
        x = x @ graph.components.T
    for layer in graph.layers:
        assert isinstance(layer, DenseLayer)
        x = ACTIVATIONS[layer.activation](x @ layer.weights + layer.bias)
    slope, intercept = graph.calibration
    return 1 / (1 + np.exp(-(slope * x + intercept)))


@st.composite
def graphs(draw: st.DrawFn) -> ProbeGraph:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_features = draw(st.integers(1, 40))
    width = n_features
    components = None
    if draw(st.booleans()):
        width = draw(st.integers(1, n_features))
        components = rng.standard_normal((width, n_features)) / n_features**0.5
    layers: list[DenseLayer] = []
    for n_out in [*draw(st.lists(st.integers(1, 20), max_size=3)), 1]:
        activation: Any = "none" if n_out == 1 else draw(st.sampled_from(sorted(ACTIVATIONS)))
        weights = rng.standard_normal((width, n_out)) / width**0.5
        layers.append(DenseLayer(weights, rng.standard_normal(n_out), activation))
        width = n_out
    return ProbeGraph(
        mean=rng.standard_normal(n_features),
        scale=rng.uniform(0.2, 5.0, n_features),
        layers=tuple(layers),
        components=components,
        calibration=(draw(st.floats(-3, 3)), draw(st.floats(-3, 3))),
    )


@settings(deadline=None, max_examples=60)
@given(graphs(), st.integers(1, 9))
def test_onnxruntime_scores_what_numpy_scores(graph: ProbeGraph, n_states: int):
    states = np.random.default_rng(n_states).standard_normal((n_states, graph.n_features)) * 3
    states = states.astype(np.float32)
    scores = run(encode_probe(graph, {}), states)
    assert (scores.shape, scores.dtype) == ((n_states, 1), np.float32)
    np.testing.assert_allclose(scores, expected_scores(graph, states), rtol=0, atol=TOLERANCE)


def test_a_scikit_learn_pipeline_is_written_as_it_is():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    states = rng.standard_normal((200, 24)) * 5 + labels[:, None] + 3
    scaler = StandardScaler().fit(states)
    pca = PCA(n_components=6).fit(scaler.transform(states))
    reduced = pca.transform(scaler.transform(states))
    model = LogisticRegression().fit(reduced, labels)
    graph = ProbeGraph(
        mean=np.asarray(scaler.mean_ + pca.mean_ * scaler.scale_),
        scale=np.asarray(scaler.scale_),
        layers=(DenseLayer(model.coef_.T, np.asarray(model.intercept_)),),
        components=pca.components_,
    )
    data = encode_probe(graph, {"layer": "18"})
    expected = model.predict_proba(reduced)[:, 1]
    with OnnxProbe.from_bytes(data, name="probe.onnx", device="cpu") as probe:
        assert (probe.n_features, probe.metadata["layer"]) == (24, "18")
        np.testing.assert_allclose(probe.score(states.astype(np.float32)), expected, atol=TOLERANCE)


def test_platt_calibration_is_in_the_graph():
    layer = DenseLayer(np.array([[2.0]]), np.array([1.0]))
    graph = ProbeGraph(np.array([0.5]), np.array([4.0]), (layer,), calibration=(3.0, -0.25))
    logit = 3.0 * (2.0 * (2.5 - 0.5) / 4.0 + 1.0) - 0.25
    scores = run(encode_probe(graph, {}), np.array([[2.5]], dtype=np.float32))
    np.testing.assert_allclose(scores, [[1 / (1 + np.exp(-logit))]], atol=TOLERANCE)


def linear(n_features: int = 3, **changes: Any) -> dict[str, Any]:
    layer = DenseLayer(np.ones((n_features, 1)), np.zeros(1))
    parts = {"mean": np.zeros(n_features), "scale": np.ones(n_features), "layers": (layer,)}
    return parts | changes


def test_the_file_has_what_the_runtime_asks_for():
    data = encode_probe(ProbeGraph(**linear()), {"threshold": "0.4", "layer": "18"})
    info = check_onnx(data, name="probe")
    assert info.inputs == (("hidden_state", "float32", ("n", 3)),)
    assert info.outputs == (("harmful_score", "float32", ("n", 1)),)
    assert dict(info.metadata) == {"threshold": "0.4", "layer": "18"}
    assert info.opset == 17
    assert data == encode_probe(ProbeGraph(**linear()), {"threshold": "0.4", "layer": "18"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean": np.zeros((3, 1))}, "mean and scale have shapes"),
        ({"mean": np.zeros(2)}, "mean and scale have shapes"),
        ({"mean": np.zeros(0), "scale": np.zeros(0)}, "mean and scale have shapes"),
        ({"scale": np.array([1.0, 0.0, 1.0])}, "a scale is not above 0"),
        ({"scale": np.array([1.0, 1e-60, 1.0])}, "a scale is not above 0"),
        ({"mean": np.array([0.0, 1e60, 0.0])}, "mean has numbers that are not finite"),
        ({"layers": ()}, "expected one, the logit"),
        ({"layers": (DenseLayer(np.ones((3, 2)), np.zeros(2)),)}, "gives 2 numbers"),
        ({"layers": (DenseLayer(np.ones((2, 1)), np.zeros(1)),)}, r"expected \(3, n_out\)"),
        ({"layers": (DenseLayer(np.ones(3), np.zeros(1)),)}, "weights of layer 0"),
        ({"layers": (DenseLayer(np.ones((3, 1)), np.zeros(2)),)}, "bias of layer 0"),
        ({"components": np.ones((2, 4))}, "components"),
        ({"components": np.ones((2, 3))}, "weights of layer 0"),
        ({"calibration": (float("nan"), 0.0)}, "slope has numbers"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, Any], reason: str):
    with pytest.raises(ProbeFileError, match=reason):
        ProbeGraph(**linear(**changes))


def test_metadata_that_the_check_refuses_is_not_written():
    with pytest.raises(ProbeFileError, match="ort_config"):
        encode_probe(ProbeGraph(**linear()), {"ort_config": "{}"})


def test_a_missing_onnx_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"safesteer-edge\[calibration\]"):
        encode_probe(ProbeGraph(**linear()), {})


def test_the_converters_can_be_imported_from_any_folder(tmp_path: Path):
    code = "import safesteer_edge.formats.probe_onnx, sys; print('onnx' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
