"""A probe.onnx whose scores are moved along a line on their logits; nothing else of it changes.

    score → sigmoid(slope · logit(score) + intercept)

Probes that end in a calibrated sigmoid keep their form: its two numbers change. To others the
logit, the line and a sigmoid are added.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from safesteer_edge.converters.probe_onnx import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    OUTPUT_NAME,
    import_onnx,
)
from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx

_PREFIX: Final = "rescale_"
_MIN_SCORE: Final = 1e-6  # nearer to 0 or 1 the logit of a float32 is rounding


def rescale_probe(data: bytes, slope: float, intercept: float, *, name: str) -> bytes:
    """Return the file of the moved probe; the same input always gives the same bytes.

    slope: above 0, so that no score changes places with another. name: what errors call the file.
    Raises ProbeFileError for a file that is no probe or a line that is none, InputError without
    the package onnx.
    """
    if not (0 < slope < math.inf and math.isfinite(intercept)):
        raise ProbeFileError(
            f"cannot rescale {name!r} by {slope:g} and {intercept:g}; expected a slope above 0"
        )
    check_onnx(data, name=name)
    onnx = import_onnx()
    model = onnx.load_from_string(data)
    graph = model.graph
    last = _node_of(graph, OUTPUT_NAME)
    if last is None:
        raise ProbeFileError(f"cannot rescale {name!r}: it has no output {OUTPUT_NAME!r}")
    if last.op_type == "Sigmoid":
        _move_logit(onnx, graph, last, slope, intercept)
    else:
        _add_line(onnx, graph, last, slope, intercept)
    onnx.checker.check_model(model, full_check=True)
    moved: bytes = model.SerializeToString(deterministic=True)
    check_onnx(moved, name=name)
    return moved


def _move_logit(onnx: Any, graph: Any, sigmoid: Any, slope: float, intercept: float) -> None:
    """Change the line that the last sigmoid gets its logit from, or put one before it."""
    add = _node_of(graph, sigmoid.input[0])
    multiply = _node_of(graph, add.input[0]) if add is not None else None
    if add is not None and multiply is not None and (add.op_type, multiply.op_type) == _LINE:
        old_intercept, old_slope = _scalar(graph, add.input[1]), _scalar(graph, multiply.input[1])
        if old_intercept is not None and old_slope is not None:
            _set_scalar(onnx, old_slope, slope * _value(onnx, old_slope))
            _set_scalar(onnx, old_intercept, slope * _value(onnx, old_intercept) + intercept)
            return
    logit = sigmoid.input[0]
    sigmoid.input[0] = f"{_PREFIX}added"
    nodes = _line(onnx, graph, logit, slope, intercept)
    at = [node.output[0] for node in graph.node].index(OUTPUT_NAME)
    for offset, node in enumerate(nodes):
        graph.node.insert(at + offset, node)


def _add_line(onnx: Any, graph: Any, last: Any, slope: float, intercept: float) -> None:
    """Take the logit of what was the score, and move that."""
    make = onnx.helper.make_node
    last.output[0] = f"{_PREFIX}score"
    for key, value in (("low", _MIN_SCORE), ("high", 1.0 - _MIN_SCORE), ("one", 1.0)):
        _add_scalar(onnx, graph, f"{_PREFIX}{key}", value)
    names = [f"{_PREFIX}{key}" for key in ("score", "low", "high", "kept", "one", "rest")]
    score, low, high, kept, one, rest = names
    graph.node.extend(
        [
            make("Clip", [score, low, high], [kept]),
            make("Sub", [one, kept], [rest]),
            make("Div", [kept, rest], [f"{_PREFIX}odds"]),
            make("Log", [f"{_PREFIX}odds"], [f"{_PREFIX}logit"]),
            *_line(onnx, graph, f"{_PREFIX}logit", slope, intercept),
            make("Sigmoid", [f"{_PREFIX}added"], [OUTPUT_NAME]),
        ]
    )


_LINE: Final = ("Add", "Mul")


def _line(onnx: Any, graph: Any, logit: str, slope: float, intercept: float) -> list[Any]:
    _add_scalar(onnx, graph, f"{_PREFIX}slope", slope)
    _add_scalar(onnx, graph, f"{_PREFIX}intercept", intercept)
    make = onnx.helper.make_node
    product = f"{_PREFIX}multiplied"
    return [
        make("Mul", [logit, f"{_PREFIX}slope"], [product]),
        make("Add", [product, f"{_PREFIX}intercept"], [f"{_PREFIX}added"]),
    ]


def _node_of(graph: Any, output: str) -> Any | None:
    return next((node for node in graph.node if output in node.output), None)


def _scalar(graph: Any, name: str) -> Any | None:
    """The float32 weight of this name, if it is one number and used once."""
    n_uses = sum(list(node.input).count(name) for node in graph.node)
    for weight in graph.initializer:
        if weight.name == name and n_uses == 1 and weight.data_type == 1:
            return weight if math.prod(weight.dims) == 1 else None
    return None


def _value(onnx: Any, weight: Any) -> float:
    return float(onnx.numpy_helper.to_array(weight).item())


def _set_scalar(onnx: Any, weight: Any, value: float) -> None:
    array = np.full(tuple(weight.dims), value, dtype=np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))


def _add_scalar(onnx: Any, graph: Any, name: str, value: float) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name))
