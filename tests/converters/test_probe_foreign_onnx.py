"""ONNX classifiers that others exported: their output is found and becomes one harmful score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from safesteer_edge.converters.probe_conversion import (
    ConversionSettings,
    convert_probe,
)
from safesteer_edge.converters.probe_export import export_probe
from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_onnx import SourceOptions
from tests.converters.probe_parity import assert_parity, scores_of, wide_states

STATES = wide_states()
N = STATES.shape[1]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Flat(nn.Module):
    """Drops the last axis: an output of shape (n,)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze(-1)


def exported(path: Path, *layers: nn.Module, dynamic: bool = True, **options: Any) -> nn.Module:
    """Export layers by PyTorch's own exporter and return them."""
    torch.manual_seed(0)
    module = nn.Sequential(*layers).eval()
    axes = {"x": {0: "batch"}, "y": {0: "batch"}} if dynamic else None
    names = {"input_names": ["x"], "output_names": ["y"], **options}
    example = (torch.zeros(1, N),)
    torch.onnx.export(
        module, example, path, dynamo=False, opset_version=17, dynamic_axes=axes, **names
    )
    return module


def outputs_of(module: nn.Module) -> Any:
    with torch.no_grad():
        return module(torch.as_tensor(STATES))


CLASSIFIERS: dict[str, tuple[tuple[nn.Module, ...], Any]] = {
    "logit": ((nn.Linear(N, 1),), lambda y: torch.sigmoid(y)[:, 0]),
    "probability": ((nn.Linear(N, 4), nn.GELU(), nn.Linear(4, 1), nn.Sigmoid()), lambda y: y[:, 0]),
    "flat logit": ((nn.Linear(N, 1), Flat()), torch.sigmoid),
    "flat probability": ((nn.Linear(N, 1), nn.Sigmoid(), Flat()), lambda y: y),
    "two logits": (
        (nn.LayerNorm(N), nn.Linear(N, 4), nn.SiLU(), nn.Linear(4, 2)),
        lambda y: torch.softmax(y, 1)[:, 1],
    ),
    "two probabilities": ((nn.Linear(N, 2), nn.Softmax(-1)), lambda y: y[:, 1]),
}


@pytest.mark.parametrize("harmful_class", [0, 1])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_exported_by_pytorch_scores_the_same(
    name: str, harmful_class: int, tmp_path: Path
):
    layers, score = CLASSIFIERS[name]
    module = exported(tmp_path / "foreign.onnx", *layers)
    output = tmp_path / "probe.onnx"
    settings = ConversionSettings(output, harmful_class=harmful_class)
    report = convert_probe(tmp_path / "foreign.onnx", settings)
    expected = score(outputs_of(module)).numpy()
    assert_parity(output, STATES, expected if harmful_class == 1 else 1 - expected)
    assert report.max_difference < 1e-5
    info = check_onnx(output.read_bytes(), name="probe")
    assert info.inputs == (("hidden_state", "float32", ("n", N)),)
    assert info.outputs == (("harmful_score", "float32", ("n", 1)),)
    assert info.metadata["safesteer.positive_class"] == "harmful"


def test_two_classes_need_to_be_told_apart(tmp_path: Path):
    exported(tmp_path / "foreign.onnx", nn.Linear(N, 2))
    with pytest.raises(InputError, match="two outputs"):
        convert_probe(tmp_path / "foreign.onnx", ConversionSettings(tmp_path / "probe.onnx"))


@pytest.mark.parametrize("names", [("hidden_state", "y"), ("harmful_score", "hidden_state")])
def test_names_that_are_ours_already_do_not_collide(names: tuple[str, str], tmp_path: Path):
    module = exported(
        tmp_path / "foreign.onnx",
        nn.Linear(N, 1),
        dynamic=False,
        input_names=[names[0]],
        output_names=[names[1]],
        # a fixed first axis, in the shapes and nowhere else, does no harm
    )
    convert_probe(tmp_path / "foreign.onnx", ConversionSettings(tmp_path / "probe.onnx"))
    assert_parity(tmp_path / "probe.onnx", STATES, torch.sigmoid(outputs_of(module))[:, 0].numpy())


def test_a_probe_of_ours_stays_what_it_is(tmp_path: Path):
    np.savez(tmp_path / "probe.npz", w=np.linspace(-1, 1, N), b=0.5)
    convert_probe(tmp_path / "probe.npz", ConversionSettings(tmp_path / "1.onnx"))
    convert_probe(tmp_path / "1.onnx", ConversionSettings(tmp_path / "2.onnx"))
    np.testing.assert_allclose(
        scores_of(tmp_path / "1.onnx", STATES), scores_of(tmp_path / "2.onnx", STATES), atol=1e-5
    )


@pytest.mark.parametrize(("quantization", "cost"), [("fp16", 1e-2), ("int8", 0.1)])
def test_a_foreign_graph_can_be_quantized(quantization: Any, cost: float, tmp_path: Path):
    exported(tmp_path / "foreign.onnx", nn.Linear(N, 64), nn.ReLU(), nn.Linear(64, 1))
    settings = ConversionSettings(tmp_path / "probe.onnx", quantization=quantization)
    report = convert_probe(tmp_path / "foreign.onnx", settings)
    assert report.quantization_difference is not None
    assert 0 < report.quantization_difference < cost
    assert report.size_bytes < (tmp_path / "foreign.onnx").stat().st_size
    scores_of(tmp_path / "probe.onnx", STATES)


def test_a_foreign_graph_does_not_go_back(tmp_path: Path):
    exported(tmp_path / "foreign.onnx", nn.Linear(N, 1))
    with pytest.raises(ProbeFileError, match=r"cannot take .* apart"):
        export_probe(tmp_path / "foreign.onnx", tmp_path / "probe.npz")
    assert not (tmp_path / "probe.npz").exists()


def graph(
    path: Path,
    nodes: list[Any],
    *,
    inputs: tuple[tuple[str, int, list[Any]], ...] = (("x", TensorProto.FLOAT, ["b", N]),),
    outputs: tuple[tuple[str, list[Any]], ...] = (("y", ["b", 1]),),
    domain: str = "",
) -> Path:
    """A small graph with a weight column `w` (N, 1)."""
    weight = numpy_helper.from_array(np.linspace(-1, 1, N, dtype=np.float32)[:, None], "w")
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 3)] if domain else [])]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "foreign",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
                for name, dims in outputs
            ],
            [weight],
        ),
        opset_imports=opsets,
        ir_version=8,
    )
    onnx.save(model, path)
    return path


LOGIT = helper.make_node("MatMul", ["x", "w"], ["y"])
BENT = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "changes", "reason"),
    [
        (BENT, {}, "made by Tanh.*--output-kind"),
        (
            [helper.make_node("Scan", ["x", "w"], ["y"])],
            {},
            "uses operator 'Scan'",
        ),
        (
            [helper.make_node("LinearClassifier", ["x"], ["y"], domain="ai.onnx.ml")],
            {"domain": "ai.onnx.ml"},
            "skops.io.dump",
        ),
        (
            [LOGIT],
            {"inputs": (("x", TensorProto.FLOAT, ["b", N]), ("z", TensorProto.FLOAT, ["b", 1]))},
            "expected one, float32",
        ),
        ([LOGIT], {"inputs": (("x", TensorProto.DOUBLE, ["b", N]),)}, "expected one, float32"),
        ([LOGIT], {"inputs": (("x", TensorProto.FLOAT, ["b", "d"]),)}, "--n-features"),
        (
            [LOGIT, helper.make_node("Sigmoid", ["y"], ["p"])],
            {"outputs": (("y", ["b", 1]), ("p", ["b", 1]))},
            "--onnx-output NAME",
        ),
        (
            [helper.make_node("Identity", ["x"], ["y"])],
            {"outputs": (("y", ["b", N]),)},
            "expected one number for each, or two",
        ),
    ],
)
def test_a_graph_that_is_no_plain_classifier_is_refused(
    nodes: list[Any], changes: dict[str, Any], reason: str, tmp_path: Path
):
    source = graph(tmp_path / "foreign.onnx", nodes, **changes)
    with pytest.raises(ProbeFileError, match=reason):
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"))
    assert list(tmp_path.iterdir()) == [source]


def test_options_say_what_the_graph_does_not(tmp_path: Path):
    nodes = [LOGIT, helper.make_node("Sigmoid", ["y"], ["p"])]
    source = graph(
        tmp_path / "foreign.onnx",
        nodes,
        inputs=(("x", TensorProto.FLOAT, ["b", "d"]),),
        outputs=(("y", ["b", 1]), ("p", ["b", 1])),
    )
    expected = 1 / (1 + np.exp(-STATES.astype(np.float64) @ np.linspace(-1, 1, N)))
    for output in ("y", "p"):
        options = SourceOptions(output=output, n_features=N)
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"), options)
        assert_parity(tmp_path / "probe.onnx", STATES, expected)
    wrong = SourceOptions(output="q", n_features=N)
    with pytest.raises(ProbeFileError, match="has no output 'q'"):
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"), wrong)


def test_a_graph_for_one_state_only_is_refused(tmp_path: Path):
    shape = numpy_helper.from_array(np.array([1, N], np.int64), "one_row")
    source = graph(
        tmp_path / "foreign.onnx",
        [
            helper.make_node("Reshape", ["x", "one_row"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
        ],
    )
    model = onnx.load(source)
    model.graph.initializer.append(shape)
    onnx.save(model, source)
    with pytest.raises(ProbeFileError, match="dynamic first axis"):
        convert_probe(source, ConversionSettings(tmp_path / "probe.onnx"))
