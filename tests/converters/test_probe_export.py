"""Probes go back out of ONNX, are read by other libraries, and come again as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_estimator,
    convert_probe,
)
from safesteer_edge.converters.probe_export import (
    export_probe,
    graph_to_tensors,
    read_probe_graph,
)
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.probe_graph import (
    ACTIVATIONS,
    DenseLayer,
    LayerNorm,
    ProbeGraph,
)
from safesteer_edge.formats.probe_onnx import encode_probe
from tests.converters.probe_parity import assert_parity, labels_of, scores_of, wide_states

STATES = wide_states()
LABELS = labels_of(STATES)
NEW_STATES = wide_states(seed=2)
MEAN, SCALE = STATES.mean(axis=0), STATES.std(axis=0)
COMPONENTS = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 4)))[0].T


def graph_of_everything(activation: Any) -> ProbeGraph:
    rng = np.random.default_rng(5)
    return ProbeGraph(
        mean=MEAN,
        scale=SCALE,
        components=COMPONENTS,
        layers=(
            DenseLayer(rng.standard_normal((4, 6)), rng.standard_normal(6), activation),
            LayerNorm(rng.standard_normal(6), rng.standard_normal(6), 1e-4, activation),
            DenseLayer(rng.standard_normal((6, 1)), rng.standard_normal(1)),
        ),
        calibration=(1.5, -0.25),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_there_and_back_again_is_the_same_probe(activation: str, suffix: str, tmp_path: Path):
    first, arrays, second = tmp_path / "1.onnx", tmp_path / f"probe{suffix}", tmp_path / "2.onnx"
    first.write_bytes(encode_probe(graph_of_everything(activation), {"safesteer.layers": "3"}))
    export_probe(first, arrays)
    convert_probe(arrays, ConversionSettings(second))
    np.testing.assert_array_equal(scores_of(first, STATES), scores_of(second, STATES))


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_an_ensemble_comes_back_from_onnx(method: str, tmp_path: Path):
    estimator = make_pipeline(
        StandardScaler(), PCA(4), CalibratedClassifierCV(LinearSVC(), method=method)
    )
    estimator.fit(STATES, LABELS)
    convert_estimator(estimator, ConversionSettings(tmp_path / "1.onnx"))
    export_probe(tmp_path / "1.onnx", tmp_path / "probe.safetensors")
    convert_probe(tmp_path / "probe.safetensors", ConversionSettings(tmp_path / "2.onnx"))
    expected = estimator.predict_proba(NEW_STATES.astype(np.float64))[:, 1]
    assert_parity(tmp_path / "2.onnx", NEW_STATES, expected)


def test_what_goes_back_can_be_read_by_safetensors_and_numpy(tmp_path: Path):
    graph = graph_of_everything("relu")
    (tmp_path / "probe.onnx").write_bytes(encode_probe(graph, {"safesteer.layers": "3"}))
    export_probe(tmp_path / "probe.onnx", tmp_path / "probe.safetensors")
    export_probe(tmp_path / "probe.onnx", tmp_path / "probe.npz")
    tensors = load_file(tmp_path / "probe.safetensors")
    with np.load(tmp_path / "probe.npz", allow_pickle=False) as arrays:
        assert str(arrays["activations"]) == "relu,relu,none"
        assert str(arrays["safesteer.layers"]) == "3"
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor, arrays[name])
    assert tensors["layers.0.weight"].shape == (6, 4)
    np.testing.assert_allclose(tensors["components"], COMPONENTS, atol=1e-6)


@pytest.mark.parametrize("quantization", ["int8", "fp16"])
def test_a_quantized_probe_comes_back_as_what_it_computes(quantization: Any, tmp_path: Path):
    data = encode_probe(graph_of_everything("tanh"), {}, quantization=quantization)
    (tmp_path / "1.onnx").write_bytes(data)
    graph, metadata = read_probe_graph(data, name="1.onnx")
    (tmp_path / "2.onnx").write_bytes(encode_probe(graph, metadata))
    np.testing.assert_allclose(
        scores_of(tmp_path / "1.onnx", STATES), scores_of(tmp_path / "2.onnx", STATES), atol=1e-6
    )


def test_a_graph_that_only_looks_like_ours_does_not_go_back(tmp_path: Path):
    model = onnx.load_model_from_string(encode_probe(graph_of_everything("relu"), {}))
    for node in model.graph.node:
        node.op_type = {"Add": "Sub"}.get(node.op_type, node.op_type)
    onnx.save(model, tmp_path / "probe.onnx")
    with pytest.raises(ProbeFileError, match=r"what was read scores up to .* away"):
        export_probe(tmp_path / "probe.onnx", tmp_path / "back.npz")
    assert not (tmp_path / "back.npz").exists()


def test_layer_norms_that_differ_in_epsilon_do_not_fit_into_a_state_dict():
    norms = [LayerNorm(np.ones(24), np.zeros(24), epsilon) for epsilon in (1e-5, 1e-3)]
    layers = (*norms, DenseLayer(np.ones((24, 1)), np.zeros(1)))
    with pytest.raises(ProbeFileError, match="epsilons"):
        graph_to_tensors(ProbeGraph(np.zeros(24), np.ones(24), layers), {})
