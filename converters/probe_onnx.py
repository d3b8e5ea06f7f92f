"""Probes as ONNX graphs: standardise, project, dense layers, calibrate, sigmoid.

    hidden_state float32 [n, n_features]
      -> (x - mean) / scale                     standardisation (scikit-learn's StandardScaler)
      -> x @ components.T                       projection (the components of a centred PCA)
      -> activation(x @ weights + bias) ...     dense layers; the last gives one number, the logit
      -> sigmoid(slope * logit + intercept)     calibration (Platt)
    harmful_score float32 [n, 1]

Everything is in the graph, so that whoever runs it passes raw states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError, ProbeFileError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.onnx_file import check_onnx

FloatArray = NDArray[np.floating[Any]]
Activation = Literal["none", "relu", "gelu", "tanh", "sigmoid"]

INPUT_NAME: Final = "hidden_state"
OUTPUT_NAME: Final = "harmful_score"

_OPSET = 17  # the oldest with all operators that are used here: any onnxruntime since 1.12 runs it
_IR_VERSION = 8  # what opset 17 came with
_ONE_NODE_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """activation(x @ weights + bias).

    weights: (n_in, n_out). bias: (n_out,). 'gelu' is the exact one, by the error function.
    """

    weights: FloatArray
    bias: FloatArray
    activation: Activation = "none"


@dataclass(frozen=True, slots=True)
class ProbeGraph:
    """A probe's parameters; all are stored as float32.

    mean, scale: (n_features,), scale above 0. components: (n_components, n_features), or None
    for no projection; fold a PCA's own mean into `mean`. layers: at least one, ending in one
    number. calibration: (slope, intercept) of the logit; (1, 0) changes nothing.
    """

    mean: FloatArray
    scale: FloatArray
    layers: tuple[DenseLayer, ...]
    components: FloatArray | None = None
    calibration: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        """Raise ProbeFileError unless the shapes fit, and every number survives float32."""
        widths = [np.shape(self.mean), np.shape(self.scale)]
        if len(widths[0]) != 1 or widths[0] != widths[1] or not len(self.mean):
            raise _misfit(f"mean and scale have shapes {widths}; expected one (n_features,)")
        width = len(self.mean)
        if self.components is not None:
            width = _matrix_width(np.asarray(self.components).T, width, "components, transposed,")
        for index, layer in enumerate(self.layers):
            width = _matrix_width(layer.weights, width, f"weights of layer {index}")
            if np.shape(layer.bias) != (width,):
                raise _misfit(f"bias of layer {index} has shape {np.shape(layer.bias)}")
        if not self.layers or width != 1:
            raise _misfit(f"the last layer gives {width} numbers; expected one, the logit")
        for name, array in _named_arrays(self).items():
            if not np.isfinite(array).all():
                raise _misfit(f"{name} has numbers that are not finite in float32")
        if not (_float32(self.scale) > 0).all():
            raise _misfit("a scale is not above 0 in float32; leave out features that never vary")

    @property
    def n_features(self) -> int:
        """The width of one hidden state."""
        return len(self.mean)


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


def encode_probe(graph: ProbeGraph, metadata: Mapping[str, str], *, name: str = "probe") -> bytes:
    """Return probe.onnx as bytes, checked by `check_onnx`. Errors: see write_probe."""
    helper = _onnx().helper
    arrays = _named_arrays(graph)
    nodes = _Nodes()
    state = nodes.add("Sub", INPUT_NAME, "mean")
    state = nodes.add("Div", state, "scale")
    if graph.components is not None:
        state = nodes.add("MatMul", state, "components")
    for index, layer in enumerate(graph.layers):
        state = nodes.add("Gemm", state, f"weights_{index}", f"bias_{index}")
        state = _add_activation(nodes, state, layer.activation)
    state = nodes.add("Mul", state, "slope")
    state = nodes.add("Add", state, "intercept")
    nodes.add("Sigmoid", state, output=OUTPUT_NAME)
    return _serialise(helper, nodes, arrays, metadata, name)


class _Nodes:
    """A chain of nodes; each result has a name of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...], str]] = []

    def add(self, operator: str, *inputs: str, output: str | None = None) -> str:
        """Add a node and return its output's name."""
        output = output or f"{operator.lower()}_{len(self.calls)}"
        self.calls.append((operator, inputs, output))
        return output


def _add_activation(nodes: _Nodes, state: str, activation: Activation) -> str:
    if activation == "none":
        return state
    if activation in _ONE_NODE_ACTIVATIONS:
        return nodes.add(_ONE_NODE_ACTIVATIONS[activation], state)
    # gelu(x) = x * (erf(x / sqrt(2)) + 1) / 2; the operator Gelu needs opset 20
    inner = nodes.add("Div", state, "sqrt_two")
    inner = nodes.add("Erf", inner)
    inner = nodes.add("Add", inner, "one")
    halved = nodes.add("Mul", state, "half")
    return nodes.add("Mul", halved, inner)


def _serialise(
    helper: Any,
    nodes: _Nodes,
    arrays: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str],
    name: str,
) -> bytes:
    onnx = _onnx()
    used = {value for _, inputs, _ in nodes.calls for value in inputs}
    weights = [
        onnx.numpy_helper.from_array(array, key) for key, array in arrays.items() if key in used
    ]
    float32 = onnx.TensorProto.FLOAT
    n_features = len(arrays["mean"])
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(operator, list(inputs), [output])
                for operator, inputs, output in nodes.calls
            ],
            "probe",
            [helper.make_tensor_value_info(INPUT_NAME, float32, ["n", n_features])],
            [helper.make_tensor_value_info(OUTPUT_NAME, float32, ["n", 1])],
            weights,
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


def _named_arrays(graph: ProbeGraph) -> dict[str, NDArray[np.float32]]:
    """Return every weight that the graph may use, as it is stored."""
    slope, intercept = graph.calibration
    arrays: dict[str, Any] = {"mean": graph.mean, "scale": graph.scale}
    if graph.components is not None:
        arrays["components"] = np.asarray(graph.components).T
    for index, layer in enumerate(graph.layers):
        arrays |= {f"weights_{index}": layer.weights, f"bias_{index}": layer.bias}
    arrays |= {"slope": slope, "intercept": intercept}
    arrays |= {"sqrt_two": np.sqrt(2.0), "one": 1.0, "half": 0.5}
    return {name: _float32(array) for name, array in arrays.items()}


def _float32(array: Any) -> NDArray[np.float32]:
    """Return a contiguous float32 copy; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(array, dtype=np.float32, order="C")


def _matrix_width(matrix: FloatArray, n_in: int, what: str) -> int:
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != n_in or shape[1] < 1:
        raise _misfit(f"{what} have shape {shape}; expected ({n_in}, n_out)")
    return shape[1]


def _misfit(problem: str) -> ProbeFileError:
    return ProbeFileError(f"cannot make a probe: {problem}; check what it was fitted on")


def _onnx() -> Any:
    """Return the package onnx, which only converting and calibrating need."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise InputError(
            f"cannot write an ONNX probe: {error}; pip install 'safesteer-edge[calibration]'"
        ) from error
    return onnx
