"""Probes as ONNX graphs: standardise, project, layers, calibrate, sigmoid.

    hidden_state float32 [n, n_features] -> harmful_score float32 [n, 1]

Everything is in the graph (see probe_graph), so that whoever runs it passes raw states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.converters.probe_graph import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    Activation,
    DenseLayer,
    FloatArray,
    IsotonicFolds,
    LayerNorm,
    ProbeGraph,
    SigmoidFolds,
    named_arrays,
    segment_folds,
)
from safesteer_edge.converters.probe_storage import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    Quantization,
    StoredWeight,
    store_weight,
)
from safesteer_edge.errors import InputError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.onnx_file import check_onnx

__all__ = [
    "INPUT_NAME",
    "OUTPUT_NAME",
    "DenseLayer",
    "ProbeGraph",
    "encode_probe",
    "import_onnx",
    "write_linear_probe",
    "write_probe",
]

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


def write_linear_probe(
    path: Path,
    *,
    weights: FloatArray,
    bias: float,
    mean: FloatArray,
    scale: FloatArray,
    components: FloatArray | None = None,
    platt: tuple[float, float] = (1.0, 0.0),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the probe.onnx of a logistic regression.

    weights: (n_features,), or (n_components,) where components are given. platt: the slope and
    intercept that calibrate the logit. Others, and errors: see ProbeGraph and write_probe.
    """
    column = np.asarray(weights).reshape(-1, 1)
    layer = DenseLayer(column, np.array([bias], dtype=np.float64))
    write_probe(path, ProbeGraph(mean, scale, (layer,), components, platt), metadata or {})


def write_probe(path: Path, graph: ProbeGraph, metadata: Mapping[str, str]) -> None:
    """Write probe.onnx, or leave the file that is there as it is.

    metadata: what becomes the file's `metadata_props`.
    Raises InputError if the package `onnx` is not installed, ProbeFileError if the result would
    not pass our own check, OSError where the folder cannot be written.
    """
    data = encode_probe(graph, metadata, name=str(path))
    with atomic_write(path, "wb") as file:
        file.write(data)


def encode_probe(
    graph: ProbeGraph,
    metadata: Mapping[str, str],
    *,
    name: str = "probe",
    quantization: Quantization = "none",
) -> bytes:
    """Return probe.onnx as bytes, checked by `check_onnx`. Errors: see write_probe.

    quantization: how matrices are stored; the graph turns them back and computes in float32.
    """
    import_onnx()
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
            epsilon = {"axis": -1, "epsilon": layer.epsilon}
            state = nodes.add("LayerNormalization", state, f"gain_{index}", bias, **epsilon)
        else:
            state = nodes.add("Gemm", state, f"weights_{index}", bias)
        state = _add_activation(nodes, state, layer.activation)
    _add_head(nodes, state, graph)
    weights = _weights(graph, nodes, quantization)
    return _serialise(nodes, weights, graph.n_features, metadata, name)


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


def _serialise(
    nodes: _Nodes,
    weights: list[StoredWeight],
    n_features: int,
    metadata: Mapping[str, str],
    name: str,
) -> bytes:
    onnx = import_onnx()
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            [node for weight in weights for node in weight.nodes(helper)]
            + [
                helper.make_node(operator, list(inputs), [output], **attributes)
                for operator, inputs, output, attributes in nodes.calls
            ],
            "probe",
            [helper.make_tensor_value_info(INPUT_NAME, float32, ["n", n_features])],
            [helper.make_tensor_value_info(OUTPUT_NAME, float32, ["n", 1])],
            [
                onnx.numpy_helper.from_array(array, key)
                for weight in weights
                for key, array in weight.arrays.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
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
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise InputError(
            f"cannot write an ONNX probe: {error}; pip install 'safesteer-edge[calibration]' "
            "or 'safesteer-edge[conversion]'"
        ) from error
    return onnx
