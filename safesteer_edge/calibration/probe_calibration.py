"""From a classifier's margins to chances: Platt's sigmoid or an isotonic line, and how reliable.

Both are fitted on out-of-fold margins and judged on folds that they were not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ProbeFileError
from safesteer_edge.formats.onnx_file import check_onnx
from safesteer_edge.formats.probe_graph import IsotonicFolds
from safesteer_edge.formats.probe_onnx import (
    OUTPUT_NAME,
    import_onnx,
)
from safesteer_edge.harvest.replay import ScoredAnswer

CalibrationMethod = Literal["platt", "isotonic"]
METHODS: Final[tuple[CalibrationMethod, ...]] = ("platt", "isotonic")

N_BINS: Final = 10
# An isotonic line is flat in places, where scores tie and thresholds cannot tell states apart: it
# has to be better by this share of the Brier score.
_WORTH_TIES: Final = 0.02


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Positions with scores of one tenth: how high they are on average, how many are harmful."""

    mean_score: float
    harmful_share: float
    n: int


@dataclass(frozen=True, slots=True)
class Reliability:
    """Of scores on folds that the calibration was not fitted on.

    brier: mean squared error. expected_error: mean distance of bins from the diagonal, weighted.
    """

    brier: float
    expected_error: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """How margins become scores. platt: slope and intercept, positive classes score high.

    head: the isotonic line, or None. reliability: of both methods, measured out of fold.
    """

    method: CalibrationMethod
    platt: tuple[float, float] = (1.0, 0.0)
    head: IsotonicFolds | None = None
    reliability: Mapping[CalibrationMethod, Reliability] | None = None

    @property
    def brier(self) -> float:
        """Mean squared error of this method's scores, out of fold; NaN where not measured."""
        return self.reliability[self.method].brier if self.reliability else math.nan

    def scores(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores in [0, 1], the same shape."""
        if self.head is not None:
            return np.interp(margins, *self.head.points[0])
        slope, intercept = self.platt
        return 1.0 / (1.0 + np.exp(-np.clip(slope * margins + intercept, -60, 60)))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: the method, and how reliable each of the two was out of fold."""
        return {
            "method": self.method,
            "platt": [round(value, 6) for value in self.platt] if self.head is None else None,
            "reliability": {
                name: {
                    "brier": round(each.brier, 5),
                    "expected_error": round(each.expected_error, 5),
                    "bins": [
                        {
                            "mean_score": round(each_bin.mean_score, 4),
                            "harmful_share": round(each_bin.harmful_share, 4),
                            "n": each_bin.n,
                        }
                        for each_bin in each.bins
                    ],
                }
                for name, each in (self.reliability or {}).items()
            },
        }


def fit_calibration(
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    method: CalibrationMethod | None = None,
) -> ScoreCalibration:
    """Fit on all; method None: the one with the better Brier score across the folds.

    margins, labels, folds: (n,), of positions; a fold holds whole requests.
    """
    reliability: dict[CalibrationMethod, Reliability] = {
        each: _across_folds(margins, labels, folds, each) for each in METHODS
    }
    if method is None:
        isotonic, platt = reliability["isotonic"].brier, reliability["platt"].brier
        method = "isotonic" if isotonic < (1.0 - _WORTH_TIES) * platt else "platt"
    fitted = _fitted(margins, labels, method)
    return ScoreCalibration(method, fitted.platt, fitted.head, reliability)


def reliability_of(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    """How well scores are chances. scores, labels: (n,)."""
    bin_indices = np.minimum((scores * N_BINS).astype(int), N_BINS - 1)
    bins: list[ReliabilityBin] = []
    for index in range(N_BINS):
        inside = bin_indices == index
        if inside.any():
            mean, share = float(scores[inside].mean()), float(labels[inside].mean())
            bins.append(ReliabilityBin(mean, share, int(inside.sum())))
    error = sum(each.n * abs(each.mean_score - each.harmful_share) for each in bins) / len(scores)
    return Reliability(float(np.mean((scores - labels) ** 2)), error, tuple(bins))


def _across_folds(
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    method: CalibrationMethod,
) -> Reliability:
    scores = np.zeros(len(margins))
    for fold in np.unique(folds):
        inside = folds == fold
        rest = ~inside if len(np.unique(labels[~inside])) == 2 else np.ones_like(inside)
        scores[inside] = _fitted(margins[rest], labels[rest], method).scores(margins[inside])
    return reliability_of(scores, labels)


def _fitted(
    margins: NDArray[np.float64], labels: NDArray[np.int64], method: CalibrationMethod
) -> ScoreCalibration:
    if method == "isotonic":  # a line that never falls
        from sklearn.isotonic import IsotonicRegression

        line = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(margins, labels)
        ends = (line.X_thresholds_, line.y_thresholds_)
        margins_at, scores_at = (np.asarray(end, dtype=np.float64) for end in ends)
        return ScoreCalibration(method, head=IsotonicFolds(((margins_at, scores_at),)))
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6).fit(margins[:, np.newaxis], labels)
    slope = float(np.asarray(model.coef_).item())
    return ScoreCalibration(method, (slope, float(np.asarray(model.intercept_).item())))


# -- moving a probe's scores back to chances: a line on the logits, fitted on another quantization

_N_POSITIONS = 32  # of each answer, as a calibration fits
# Scores are float32: nearer to 0 or 1 their logit is rounding.
_MIN_SCORE = 1e-7


@dataclass(frozen=True, slots=True)
class Rescale:
    """score → sigmoid(slope · logit(score) + intercept); slope above 0 keeps the order.

    keeps_prompts: the prompts' scores are another probe's, and stay.
    """

    slope: float
    intercept: float
    keeps_prompts: bool = False

    def scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rescaled scores, in [0, 1]."""
        moved = self.slope * _logits(scores) + self.intercept
        return 1.0 / (1.0 + np.exp(-np.clip(moved, -60, 60)))

    def answers(self, answers: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
        """The same answers with rescaled scores."""
        return [
            replace(
                answer,
                scores=moved[1:],
                prompt_score=answer.prompt_score if self.keeps_prompts else float(moved[0]),
            )
            for answer in answers
            for moved in (self.scores(answer.trajectory),)
        ]


def fit_rescale(answers: Sequence[ScoredAnswer]) -> Rescale:
    """Platt's calibration of the scores: complying answers to harmful requests against all others.

    Raises ProbeFileError if higher scores do not mean more harm: the probe is of no use here.
    """
    from sklearn.linear_model import LogisticRegression

    rows = [_logits(answer.scores[:_N_POSITIONS]) for answer in answers]
    labels = np.repeat([int(answer.complies) for answer in answers], [len(row) for row in rows])
    model = LogisticRegression(C=1e6).fit(np.concatenate(rows)[:, np.newaxis], labels)
    slope = float(np.asarray(model.coef_).item())
    if not slope > 0:
        raise ProbeFileError(
            f"the probe's scores do not rise with harm on this model (slope {slope:.3g}); run a "
            "whole 'safesteer-edge calibrate', without --from"
        )
    return Rescale(slope, float(np.asarray(model.intercept_).item()))


def _logits(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = np.clip(scores, _MIN_SCORE, 1.0 - _MIN_SCORE)
    return np.log(kept / (1.0 - kept))


# -- a probe.onnx whose scores are moved along a line on their logits; nothing else of it changes --
# score → sigmoid(slope · logit(score) + intercept)
#
# Probes that end in a calibrated sigmoid keep their form: its two numbers change. To others the
# logit, the line and a sigmoid are added.

_PREFIX: Final = "rescale_"
_LEAST_SCORE: Final = 1e-6  # nearer to 0 or 1 the logit of a float32 is rounding


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
            for weight, more in ((old_slope, 0.0), (old_intercept, intercept)):
                value = slope * float(onnx.numpy_helper.to_array(weight).item()) + more
                array = np.full(tuple(weight.dims), value, dtype=np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
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
    for key, value in (("low", _LEAST_SCORE), ("high", 1.0 - _LEAST_SCORE), ("one", 1.0)):
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


def _add_scalar(onnx: Any, graph: Any, name: str, value: float) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name))
