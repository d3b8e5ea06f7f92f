"""Probes as ONNX graphs: standardise, project, layers, calibrate, sigmoid.

    hidden_state float32 [n, n_features] -> harmful_score float32 [n, 1]

Everything is in the graph (see probe_graph), so that whoever runs it passes raw states.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_graph import (
    Activation,
    IsotonicFolds,
    LayerNorm,
    ProbeGraph,
    SigmoidFolds,
    named_arrays,
    score_states,
    segment_folds,
    turned_round,
)

# -- how a probe's weights lie in the file: as they are, in float16, or in 8-bit integers ----------
# Only matrices are made smaller. The graph turns them back before it computes, so a smaller file
# costs the rounding of the weights and nothing else.

Quantization = Literal["none", "fp16", "int8"]

_FLOAT32 = 1  # onnx.TensorProto.FLOAT
_MAX_INT8 = 127
_MAX_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight. name: what the graph calls it. arrays: what the file holds, by name."""

    name: str
    arrays: Mapping[str, NDArray[Any]]
    quantization: Quantization

    def nodes(self, helper: Any) -> list[Any]:
        """Return the ONNX nodes that make the weight of the stored arrays."""
        inputs = list(self.arrays)
        if self.quantization == "fp16":
            return [helper.make_node("Cast", inputs, [self.name], to=_FLOAT32)]
        if self.quantization == "int8":
            # Not DequantizeLinear: onnxruntime 1.31 joins it and the product to MatMulNBits, which
            # rounds the states as well and moved scores by 0.01. These two it folds when loading.
            codes, scale = inputs
            cast = helper.make_node("Cast", [codes], [f"{codes}_float"], to=_FLOAT32)
            return [cast, helper.make_node("Mul", [f"{codes}_float", scale], [self.name])]
        return []


def store_weight(name: str, array: NDArray[Any], quantization: Quantization) -> StoredWeight:
    """Return a weight in the form in which it is stored; all but matrices as they are.

    int8 has one scale for each column, and no zero points.
    Raises InputError for numbers that float16 cannot hold, and for float64 matrices.
    """
    if array.ndim != 2 or quantization == "none":
        return StoredWeight(name, {name: array}, "none")
    if array.dtype != np.float32:
        raise InputError(
            "cannot quantize this probe: its isotonic calibration needs float64; leave out "
            "--quantize, or calibrate it with method='sigmoid'"
        )
    if quantization == "fp16":
        if np.abs(array).max() > _MAX_FLOAT16:
            raise InputError(f"cannot quantize this probe: {name} exceeds float16; use int8")
        return StoredWeight(name, {f"{name}_fp16": array.astype(np.float16)}, "fp16")
    scales = (np.abs(array).max(axis=0) / _MAX_INT8).astype(np.float32)
    scales[scales == 0] = 1.0
    codes = (array / scales).round().clip(-_MAX_INT8, _MAX_INT8).astype(np.int8)
    return StoredWeight(name, {f"{name}_int8": codes, f"{name}_scale": scales}, "int8")


INPUT_NAME: Final = "hidden_state"
OUTPUT_NAME: Final = "harmful_score"

_OPSET = 17  # the oldest with all operators that are used here: any onnxruntime since 1.12 runs it
_IR_VERSION = 8  # what opset 17 came with
_ONE_NODE_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
_CONSTANTS = {
    "sqrt_two": math.sqrt(2.0),
    "one": 1.0,
    "half": 0.5,
    "zero": 0.0,
    "three": 3.0,
    "gelu_cubic": 0.044715,
    "gelu_factor": math.sqrt(2.0 / math.pi),
}


def encode_probe(
    graph: ProbeGraph,
    metadata: Mapping[str, str],
    *,
    name: str = "probe",
    quantization: Quantization = "none",
) -> bytes:
    """Return probe.onnx as bytes, checked by `check_onnx`.

    metadata: what becomes the file's `metadata_props`.
    quantization: how matrices are stored; the graph turns them back and computes in float32.
    Raises InputError if the package `onnx` is not installed, ProbeFileError if the result would
    not pass our own check.
    """
    nodes = _Nodes()
    state = INPUT_NAME
    if graph.dtype == "float64":
        state = nodes.add("Cast", state, to=_data_type("DOUBLE"))
    state = nodes.add("Sub", state, "mean")
    state = nodes.add("Div", state, "scale")
    if graph.components is not None:
        state = nodes.add("MatMul", state, "components")
    for index, layer in enumerate(graph.layers):
        bias = f"bias_{index}"
        if isinstance(layer, LayerNorm):
            gain = f"gain_{index}"
            state = nodes.add(
                "LayerNormalization", state, gain, bias, axis=-1, epsilon=layer.epsilon
            )
        else:
            state = nodes.add("Gemm", state, f"weights_{index}", bias)
        state = _add_activation(nodes, state, layer.activation)
    _add_head(nodes, state, graph)
    weights = _weights(graph, nodes, quantization)
    return serialise_probe(nodes.made(), weights, graph.n_features, metadata, name=name)


class _Nodes:
    """A chain of nodes; each result has a name of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...], str, dict[str, Any]]] = []

    def add(
        self,
        operator: str,
        *inputs: str,
        output: str | None = None,
        **attributes: float | list[int],
    ) -> str:
        """Add a node and return its output's name."""
        output = output or f"{operator.lower()}_{len(self.calls)}"
        self.calls.append((operator, inputs, output, attributes))
        return output

    def made(self) -> list[Any]:
        """Return them as ONNX has them."""
        make_node = import_onnx().helper.make_node
        return [
            make_node(operator, list(inputs), [output], **attributes)
            for operator, inputs, output, attributes in self.calls
        ]


def _add_activation(nodes: _Nodes, state: str, activation: Activation) -> str:
    if activation == "none":
        return state
    if activation in _ONE_NODE_ACTIVATIONS:
        return nodes.add(_ONE_NODE_ACTIVATIONS[activation], state)
    if activation == "silu":
        return nodes.add("Mul", state, nodes.add("Sigmoid", state))
    # x * (inner + 1) / 2 with inner = erf(x / sqrt(2)), or its approximation
    # tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)); the operator Gelu needs opset 20
    if activation == "gelu":
        inner = nodes.add("Erf", nodes.add("Div", state, "sqrt_two"))
    else:
        cubic = nodes.add("Mul", nodes.add("Pow", state, "three"), "gelu_cubic")
        inner = nodes.add("Mul", nodes.add("Add", state, cubic), "gelu_factor")
        inner = nodes.add("Tanh", inner)
    inner = nodes.add("Add", inner, "one")
    halved = nodes.add("Mul", state, "half")
    return nodes.add("Mul", halved, inner)


def _add_head(nodes: _Nodes, state: str, graph: ProbeGraph) -> None:
    """Add what makes one score of the logits."""
    if isinstance(graph.head, IsotonicFolds):
        state = nodes.add("Gather", state, "segment_fold", axis=1)
        state = nodes.add("Sub", state, "segment_start")
        state = nodes.add("Div", state, "segment_width")
        state = nodes.add("Clip", state, "zero", "one")
        state = nodes.add("MatMul", state, "segment_rise")
        state = nodes.add("Add", state, "offset")  # [n, n_folds]: their mean is the score
        state = nodes.add("ReduceMean", state, axes=[1], keepdims=1)
        state = nodes.add("Clip", state, "zero", "one")  # what rounding added
        nodes.add("Cast", state, output=OUTPUT_NAME, to=_data_type("FLOAT"))
        return
    state = nodes.add("Mul", state, "slope")
    state = nodes.add("Add", state, "intercept")
    if isinstance(graph.head, SigmoidFolds):
        state = nodes.add("Sigmoid", state)
        state = nodes.add("ReduceMean", state, axes=[1], keepdims=1)
        nodes.add("Clip", state, "zero", "one", output=OUTPUT_NAME)
        return
    nodes.add("Sigmoid", state, output=OUTPUT_NAME)


def _weights(graph: ProbeGraph, nodes: _Nodes, quantization: Quantization) -> list[StoredWeight]:
    """Return what the nodes use, in the form in which it is stored."""
    arrays: dict[str, Any] = dict(named_arrays(graph))
    if isinstance(graph.head, IsotonicFolds):
        arrays["segment_fold"] = segment_folds(graph.head)
    arrays |= {name: np.array(value, graph.dtype) for name, value in _CONSTANTS.items()}
    used = {value for _, inputs, _, _ in nodes.calls for value in inputs}
    return [
        store_weight(name, array, quantization) for name, array in arrays.items() if name in used
    ]


def serialise_probe(
    nodes: Sequence[Any],
    weights: Sequence[StoredWeight],
    n_features: int,
    metadata: Mapping[str, str],
    *,
    name: str,
    opsets: Sequence[Any] | None = None,
    ir_version: int = _IR_VERSION,
) -> bytes:
    """Return probe.onnx of ONNX nodes from INPUT_NAME to OUTPUT_NAME and the weights they use.

    opsets: None for ours. Raises ProbeFileError if the result would not pass our own check, and
    whatever `onnx.checker` raises.
    """
    onnx = import_onnx()
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            [node for weight in weights for node in weight.nodes(helper)] + [*nodes],
            "probe",
            [helper.make_tensor_value_info(INPUT_NAME, float32, ["n", n_features])],
            [helper.make_tensor_value_info(OUTPUT_NAME, float32, ["n", 1])],
            [
                onnx.numpy_helper.from_array(array, key)
                for weight in weights
                for key, array in weight.arrays.items()
            ],
        ),
        opset_imports=opsets or [helper.make_opsetid("", _OPSET)],
        ir_version=ir_version,
        producer_name="safesteer-edge",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    check_onnx(data, name=name)
    return data


def _data_type(name: str) -> int:
    return int(getattr(import_onnx().TensorProto, name))


def import_onnx() -> Any:
    """Return the package onnx, which only converting and calibrating need."""
    try:
        onnx: Any = importlib.import_module("onnx")
        for part in ("checker", "helper", "numpy_helper"):
            importlib.import_module(f"onnx.{part}")
    except ImportError as error:
        raise InputError(
            f"cannot write an ONNX probe: {error}; pip install 'safesteer-edge[calibration]' "
            "or 'safesteer-edge[conversion]'"
        ) from error
    return onnx


# -- what a probe is before it is converted: where it came from, and what it computes there --------

States = NDArray[np.floating[Any]]
Reference = Callable[[States], NDArray[np.floating[Any]]]
Kind = Literal["auto", "state-dict", "numpy", "rds", "autosteer", "scikit-learn", "onnx"]
OutputKind = Literal["auto", "logit", "probability"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source does not say about itself.

    activations: one after each Linear and LayerNorm; the last may be left out. modules: their
    names in order. harmfulness: the second file of RDS's pair. output, output_kind, n_features:
    of an ONNX graph.
    """

    kind: Kind = "auto"
    activations: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    layer_norm_epsilon: float | None = None
    harmfulness: Path | None = None
    output: str | None = None
    output_kind: OutputKind = "auto"
    n_features: int | None = None


class ProbeSource(Protocol):
    """A probe that was read. Its score is that of its class 1, whatever that means there.

    kind: in words, for the report. harmful_hint: '' if class 1 is the harmful one unless somebody
    says otherwise; else why that cannot be taken for granted.
    """

    @property
    def kind(self) -> str: ...
    @property
    def harmful_hint(self) -> str: ...
    @property
    def n_features(self) -> int: ...
    def reference_scores(self, states: States) -> NDArray[np.floating[Any]]:
        """Return (n,) scores of class 1 as the source itself computes them."""
        ...

    def encode(
        self,
        metadata: Mapping[str, str],
        *,
        name: str,
        harmful_class: int = 1,
        quantization: Quantization = "none",
    ) -> bytes:
        """Return probe.onnx, which scores the harmful class."""
        ...


@dataclass(frozen=True, slots=True)
class GraphSource:
    """A probe whose parameters are known. reference: the source's own scores, if it can run."""

    kind: str
    graph: ProbeGraph
    harmful_hint: str = ""
    reference: Reference | None = None

    @property
    def n_features(self) -> int:
        """The width of one state."""
        return self.graph.n_features

    def reference_scores(self, states: States) -> NDArray[np.floating[Any]]:
        """Return (n,) scores of class 1; in NumPy and float64 where the source cannot run."""
        return (
            score_states(self.graph, states) if self.reference is None else self.reference(states)
        )

    def encode(
        self,
        metadata: Mapping[str, str],
        *,
        name: str,
        harmful_class: int = 1,
        quantization: Quantization = "none",
    ) -> bytes:
        """Return probe.onnx, which scores the harmful class. Errors: see encode_probe."""
        graph = self.graph if harmful_class == 1 else turned_round(self.graph)
        return encode_probe(graph, metadata, name=name, quantization=quantization)
