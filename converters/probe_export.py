"""Probes back out of ONNX, as named arrays that PyTorch and NumPy read, and that convert again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.probe_files import read_onnx_bytes
from safesteer_edge.converters.tensor_files import (
    TensorFile,
    write_npz,
    write_safetensors,
)
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_graph import (
    Activation,
    DenseLayer,
    Head,
    IsotonicFolds,
    Layer,
    LayerNorm,
    ProbeGraph,
    SigmoidFolds,
    score_states,
    stored,
)
from safesteer_edge.formats.probe_onnx import import_onnx
from safesteer_edge.probe.probe import OnnxProbe

_ACTIVATIONS: Final[Mapping[tuple[str, ...], Activation]] = {
    (): "none",
    ("Relu",): "relu",
    ("Tanh",): "tanh",
    ("Sigmoid",): "sigmoid",
    ("Sigmoid", "Mul"): "silu",
    ("Div", "Erf", "Add", "Mul", "Mul"): "gelu",
    ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul", "Mul"): "gelu_tanh",
}
_N_COMPARED = 256
_MAX_DIFFERENCE = 1e-3  # more than this is no rounding
_LAYERS = ("Gemm", "LayerNormalization")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. max_difference: of scores on n_states made-up states, against ONNX."""

    n_features: int
    n_layers: int
    n_states: int
    max_difference: float


def read_probe_graph(data: bytes, *, name: str) -> tuple[ProbeGraph, Mapping[str, str]]:
    """Return the parameters and metadata of a probe.onnx that this package wrote.

    Quantized weights come back as the numbers that the graph computes with.
    Raises ProbeFileError for any other graph.
    """
    info = check_onnx(data, name=name)
    model = import_onnx().load_model_from_string(data)
    weights = _weights(model)
    nodes = [node for node in model.graph.node if node.output[0] not in weights]
    try:
        components = weights.get("components")
        calibration, head = _head(weights)
        graph = ProbeGraph(
            mean=weights["mean"],
            scale=weights["scale"],
            layers=_layers(nodes, weights),
            components=None if components is None else components.T,
            calibration=calibration,
            head=head,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise _not_ours(name, f"no {error}") from error
    return graph, info.metadata


def graph_to_tensors(graph: ProbeGraph, metadata: Mapping[str, str]) -> TensorFile:
    """Return a probe as named arrays, weights as PyTorch has them: (n_out, n_in).

    metadata gets what a state dictionary does not hold: activations and the layer norms' epsilon.
    Raises ProbeFileError for layer norms whose epsilons differ.
    """
    arrays: dict[str, Any] = {"mean": graph.mean, "scale": graph.scale}
    if graph.components is not None:
        arrays["components"] = graph.components
    for index, layer in enumerate(graph.layers):
        weight = layer.gain if isinstance(layer, LayerNorm) else layer.weights.T
        arrays |= {f"layers.{index}.weight": weight, f"layers.{index}.bias": layer.bias}
    if isinstance(graph.head, IsotonicFolds):
        for index, (x, y) in enumerate(graph.head.points):
            arrays |= {f"isotonic.{index}.x": x, f"isotonic.{index}.y": y}
    else:
        head = graph.head
        slope = [graph.calibration[0]] if head is None else head.slopes
        intercept = [graph.calibration[1]] if head is None else head.intercepts
        arrays |= {"calibration.slope": slope, "calibration.intercept": intercept}
    texts = {**metadata, "activations": ",".join(layer.activation for layer in graph.layers)}
    epsilons = {layer.epsilon for layer in graph.layers if isinstance(layer, LayerNorm)}
    if len(epsilons) > 1:
        raise ProbeFileError(
            f"cannot save this probe: its layer norms have epsilons {sorted(epsilons)}, and the "
            "file has room for one; keep the ONNX file"
        )
    if epsilons:
        texts["layer_norm_epsilon"] = repr(epsilons.pop())
    return TensorFile({key: stored(value, graph.dtype) for key, value in arrays.items()}, texts)


def export_probe(source: Path, output: Path) -> ExportReport:
    """Write a probe.onnx as .safetensors or .npz and return how near it is to the ONNX file.

    Raises ProbeFileError for a graph that this package did not write, OSError.
    """
    name, data = str(source), read_onnx_bytes(source)
    graph, metadata = read_probe_graph(data, name=name)
    noise = np.random.default_rng(0).standard_normal((_N_COMPARED, graph.n_features))
    states = (noise * graph.scale + graph.mean).astype(np.float32)
    with OnnxProbe.from_bytes(data, name=name, device="cpu") as probe:
        difference = float(np.abs(probe.score(states) - score_states(graph, states)).max())
    if not difference <= _MAX_DIFFERENCE:
        raise _not_ours(name, f"what was read scores up to {difference:.2g} away from it")
    write = write_npz if output.suffix.lower() == ".npz" else write_safetensors
    write(output, graph_to_tensors(graph, metadata))
    return ExportReport(graph.n_features, len(graph.layers), _N_COMPARED, difference)


def _not_ours(name: str, problem: str) -> ProbeFileError:
    return ProbeFileError(
        f"cannot take {name!r} apart: it is not a graph that 'convert probe' made of parameters "
        f"({problem}); go back to what it was exported from"
    )


def _weights(model: Any) -> dict[str, NDArray[Any]]:
    """Return the weights that the graph computes with, quantized ones turned back."""
    to_array = import_onnx().numpy_helper.to_array
    weights = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if any(name not in weights for name in node.input):
            continue
        values = [weights[name] for name in node.input]
        if node.op_type == "Cast":
            weights[node.output[0]] = values[0].astype(np.float32)
        elif node.op_type == "Mul" and values[0].shape[1:] == values[1].shape:
            weights[node.output[0]] = values[0] * values[1]
    return weights


def _layers(nodes: list[Any], weights: Mapping[str, NDArray[Any]]) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    operators = [node.op_type for node in nodes]
    starts = [index for index, operator in enumerate(operators) if operator in _LAYERS]
    ends = [
        index for index, node in enumerate(nodes) if {"slope", "segment_fold"} & set(node.input)
    ]
    for index, (start, end) in enumerate(zip(starts, [*starts[1:], ends[0]], strict=True)):
        activation = _ACTIVATIONS[tuple(operators[start + 1 : end])]
        bias = weights[f"bias_{index}"]
        if operators[start] == "Gemm":
            layers.append(DenseLayer(weights[f"weights_{index}"], bias, activation))
        else:
            (epsilon,) = (a.f for a in nodes[start].attribute if a.name == "epsilon")
            layers.append(LayerNorm(weights[f"gain_{index}"], bias, epsilon, activation))
    return tuple(layers)


def _head(weights: Mapping[str, NDArray[Any]]) -> tuple[tuple[float, float], Head | None]:
    """Return what makes scores of logits: a calibration, or what stands in its place."""
    if "segment_fold" in weights:
        folds = range(weights["offset"].size)
        return (1.0, 0.0), IsotonicFolds(tuple(_points(weights, fold) for fold in folds))
    slope, intercept = weights["slope"], weights["intercept"]
    if slope.size > 1:
        return (1.0, 0.0), SigmoidFolds(slope, intercept)
    return (float(slope.item()), float(intercept.item())), None


def _points(weights: Mapping[str, NDArray[Any]], fold: int) -> tuple[Any, Any]:
    """Return one fold's line from its segments."""
    mine = weights["segment_fold"] == fold
    starts, widths = weights["segment_start"][mine], weights["segment_width"][mine]
    rises = weights["segment_rise"][mine, 0] * weights["offset"].size
    x = np.append(starts, starts[-1] + widths[-1])
    y = weights["offset"][fold] + np.append(0.0, np.cumsum(rises))
    return x, np.clip(y, 0.0, 1.0)
