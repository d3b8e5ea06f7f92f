"""From a classifier's margins to chances: Platt's sigmoid or an isotonic line, and how reliable.

Both are fitted on out-of-fold margins and judged on folds that they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.probe_graph import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
    IsotonicFolds,
)

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
    if method == "isotonic":
        return ScoreCalibration(method, head=_isotonic(margins, labels))
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1e6).fit(margins[:, np.newaxis], labels)
    slope = float(np.asarray(model.coef_).item())
    return ScoreCalibration(method, (slope, float(np.asarray(model.intercept_).item())))


def _isotonic(margins: NDArray[np.float64], labels: NDArray[np.int64]) -> IsotonicFolds:
    """A line that never falls."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(margins, labels)
    points = (
        np.asarray(model.X_thresholds_, dtype=np.float64),
        np.asarray(model.y_thresholds_, dtype=np.float64),
    )
    return IsotonicFolds((points,))
