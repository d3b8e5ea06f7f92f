"""What a probe computes: its parameters, checked, and the same in NumPy.

hidden_state (n, n_features)
  -> (x - mean) / scale                     standardisation (scikit-learn's StandardScaler)
  -> x @ components.T                       projection (the components of a centred PCA)
  -> dense layers and layer norms           the last gives the logit, or one for each fold
  -> sigmoid(slope * logit + intercept)     calibration (Platt), or the head of an ensemble
harmful_score (n,)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ProbeFileError

FloatArray = NDArray[np.floating[Any]]
Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"]
ACTIVATIONS: Final[tuple[str, ...]] = get_args(Activation)


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """activation(x @ weights + bias).

    weights: (n_in, n_out). bias: (n_out,). 'gelu' is the exact one, by the error function,
    'gelu_tanh' PyTorch's approximation of it.
    """

    weights: FloatArray
    bias: FloatArray
    activation: Activation = "none"


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """activation((x - mean of x) / sqrt(variance of x + epsilon) * gain + bias).

    gain, bias: (n,).
    """

    gain: FloatArray
    bias: FloatArray
    epsilon: float = 1e-5
    activation: Activation = "none"


@dataclass(frozen=True, slots=True)
class SigmoidFolds:
    """The mean over folds of sigmoid(slope * logit + intercept). slopes, intercepts: (n_folds,)."""

    slopes: FloatArray
    intercepts: FloatArray


@dataclass(frozen=True, slots=True)
class IsotonicFolds:
    """The mean over folds of a line through points, level beyond them.

    points: for each fold x and y, both (n_points,); x rises, y lies in [0, 1]. Lines can be
    steep, so a probe that has this head computes in float64.
    """

    points: tuple[tuple[FloatArray, FloatArray], ...]


Layer = DenseLayer | LayerNorm
Head = SigmoidFolds | IsotonicFolds


@dataclass(frozen=True, slots=True)
class ProbeGraph:
    """A probe's parameters; they are stored as float32, or float64 under an isotonic head.

    mean, scale: (n_features,), scale above 0. components: (n_components, n_features), or None
    for no projection; fold a PCA's own mean into `mean`. layers: ending in a dense one that gives
    one number. calibration: (slope, intercept) of the logit; (1, 0) changes nothing. head: takes
    the calibration's place; the last layer then gives one number for each fold.
    """

    mean: FloatArray
    scale: FloatArray
    layers: tuple[Layer, ...]
    components: FloatArray | None = None
    calibration: tuple[float, float] = (1.0, 0.0)
    head: Head | None = None

    def __post_init__(self) -> None:
        """Raise ProbeFileError unless the shapes fit, and every number survives its storage."""
        widths = [self.mean.shape, self.scale.shape]
        if len(widths[0]) != 1 or widths[0] != widths[1] or not len(self.mean):
            raise misfit(f"mean and scale have shapes {widths}; expected one (n_features,)")
        width = len(self.mean)
        if self.components is not None:
            width = _matrix_width(transposed(self.components), width, "components, transposed,")
        for index, layer in enumerate(self.layers):
            width = _layer_width(layer, width, index)
        n_logits = _n_folds(self.head)
        if not self.layers or width != n_logits:
            expected = "one, the logit" if self.head is None else f"{n_logits}, one for each fold"
            raise misfit(f"the last layer gives {width} numbers; expected {expected}")
        for name, array in named_arrays(self).items():
            if not np.isfinite(array).all():
                raise misfit(f"{name} has numbers that are not finite in {self.dtype}")
        if not (stored(self.scale, self.dtype) > 0).all():
            raise misfit(
                f"a scale is not above 0 in {self.dtype}; leave out features that never vary"
            )

    @property
    def n_features(self) -> int:
        """The width of one state."""
        return len(self.mean)

    @property
    def dtype(self) -> Literal["float32", "float64"]:
        """What the parameters are stored and computed in."""
        return "float64" if isinstance(self.head, IsotonicFolds) else "float32"


def turned_round(graph: ProbeGraph) -> ProbeGraph:
    """Return the probe whose score is 1 - this one's."""
    if isinstance(graph.head, IsotonicFolds):
        points = tuple((x, 1.0 - y) for x, y in graph.head.points)
        return replace(graph, head=IsotonicFolds(points))
    if isinstance(graph.head, SigmoidFolds):
        head = SigmoidFolds(-graph.head.slopes, -graph.head.intercepts)
        return replace(graph, head=head)
    slope, intercept = graph.calibration
    return replace(graph, calibration=(-slope, -intercept))


def score_states(graph: ProbeGraph, states: FloatArray) -> NDArray[np.float64]:
    """Score states in NumPy and float64: what the ONNX file is measured against.

    states: (n, n_features). Returns (n,).
    """
    x = logits_of(graph, states)
    head = graph.head
    if isinstance(head, IsotonicFolds):
        folds = [np.interp(x[:, fold], *points) for fold, points in enumerate(head.points)]
        return np.mean(folds, axis=0)
    if head is None:
        slope, intercept = graph.calibration
        return _sigmoid(slope * x + intercept)[:, 0]
    return _sigmoid(head.slopes * x + head.intercepts).mean(axis=1)


def logits_of(graph: ProbeGraph, states: FloatArray) -> NDArray[np.float64]:
    """What the last layer gives, before any calibration. Returns (n, n_folds), or (n, 1)."""
    x: NDArray[np.float64] = (states.astype(np.float64) - graph.mean) / graph.scale
    if graph.components is not None:
        x = x @ transposed(graph.components)
    for layer in graph.layers:
        if isinstance(layer, LayerNorm):
            centred = x - x.mean(axis=1, keepdims=True)
            deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + layer.epsilon)
            x = centred / deviation * layer.gain + layer.bias
        else:
            x = x @ layer.weights.astype(np.float64) + layer.bias
        x = _activated(x, layer.activation)
    return x


def named_arrays(graph: ProbeGraph) -> dict[str, FloatArray]:
    """Return every parameter under the name that it has in the file, as it is stored."""
    arrays: dict[str, Any] = {"mean": graph.mean, "scale": graph.scale}
    if graph.components is not None:
        arrays["components"] = transposed(graph.components)
    for index, layer in enumerate(graph.layers):
        if isinstance(layer, LayerNorm):
            arrays |= {f"gain_{index}": layer.gain, f"bias_{index}": layer.bias}
        else:
            arrays |= {f"weights_{index}": layer.weights, f"bias_{index}": layer.bias}
    if isinstance(graph.head, SigmoidFolds):
        arrays |= {"slope": graph.head.slopes, "intercept": graph.head.intercepts}
    elif isinstance(graph.head, IsotonicFolds):
        arrays |= _segments(graph.head)
    else:
        slope, intercept = graph.calibration
        arrays |= {"slope": slope, "intercept": intercept}
    return {name: stored(array, graph.dtype) for name, array in arrays.items()}


def stored(array: Any, dtype: str) -> FloatArray:
    """Return a contiguous copy in this type; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(array, dtype=dtype, order="C")


def segment_folds(head: IsotonicFolds) -> NDArray[np.int64]:
    """Return which fold's logit each of the line segments takes, (n_segments,)."""
    sizes = [max(len(x) - 1, 1) for x, _ in head.points]
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def transposed(matrix: FloatArray) -> FloatArray:
    """Return a view of it; NumPy's own stub does not say of what type."""
    return cast(Any, matrix).T


def misfit(problem: str) -> ProbeFileError:
    """Return the error for parameters that make no probe."""
    return ProbeFileError(f"cannot make a probe: {problem}; check what it was fitted on")


def refused(name: str, problem: str, remedy: str) -> ProbeFileError:
    """Return the error for what cannot be converted to a probe. name: of its source."""
    return ProbeFileError(f"cannot convert {name!r}: {problem}; {remedy}")


def _segments(head: IsotonicFolds) -> dict[str, FloatArray]:
    """Return a sum of clipped ramps: mean offset + sum of rises * clip((x - start) / width).

    A fold of one point has one segment that does not rise.
    """
    points = head.points
    rises = [np.diff(y) if len(y) > 1 else np.zeros(1) for _, y in points]
    return {
        "segment_start": np.concatenate([x[:-1] if len(x) > 1 else x for x, _ in points]),
        "segment_width": np.concatenate([np.diff(x) if len(x) > 1 else [1.0] for x, _ in points]),
        "segment_rise": np.concatenate(rises)[:, None] / len(points),
        "offset": np.array([y[0] for _, y in points]),
    }


def _n_folds(head: Head | None) -> int:
    if head is None:
        return 1
    if isinstance(head, SigmoidFolds):
        shapes = head.slopes.shape, head.intercepts.shape
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise misfit(f"slopes and intercepts have shapes {shapes}; expected (n_folds,)")
        return shapes[0][0]
    for x, y in head.points:
        good = x.ndim == 1 and x.shape == y.shape and len(x) > 0
        if not good or not (np.diff(x) > 0).all() or not ((y >= 0) & (y <= 1)).all():
            raise misfit("an isotonic calibration's points are not rising in x, and 0 to 1 in y")
    return len(head.points)


def _layer_width(layer: Layer, n_in: int, index: int) -> int:
    if isinstance(layer, LayerNorm):
        shapes = [layer.gain.shape, layer.bias.shape]
        if shapes != [(n_in,), (n_in,)] or not 0 < layer.epsilon < math.inf:
            raise misfit(
                f"layer norm {index} has shapes {shapes} and epsilon {layer.epsilon}; "
                f"expected ({n_in},) twice, and more than 0"
            )
        return n_in
    width = _matrix_width(layer.weights, n_in, f"weights of layer {index}")
    if layer.bias.shape != (width,):
        raise misfit(f"bias of layer {index} has shape {layer.bias.shape}")
    return width


def _matrix_width(matrix: FloatArray, n_in: int, what: str) -> int:
    shape = matrix.shape
    if len(shape) != 2 or shape[0] != n_in or shape[1] < 1:
        raise misfit(f"{what} have shape {shape}; expected ({n_in}, n_out)")
    return shape[1]


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and 1 / that is 0
        return 1.0 / (1.0 + np.exp(-x))


def _activated(x: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    functions: Mapping[str, Any] = {
        "none": lambda: x,
        "relu": lambda: np.maximum(x, 0.0),
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: _sigmoid(x),
        "silu": lambda: x * _sigmoid(x),
        "gelu": lambda: x * (1.0 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2.0))) / 2,
        "gelu_tanh": lambda: (
            x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))) / 2.0
        ),
    }
    return functions[activation]()
