"""The few statistics that reports need: AUROC, and the interval of a share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Share:
    """count of n, with Wilson's 95 % interval."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval at 95 %; (0, 1) of nothing."""
        if not self.n:
            return 0.0, 1.0
        z2 = _Z_95**2
        centre = (self.value + z2 / (2 * self.n)) / (1 + z2 / self.n)
        spread = self.value * (1 - self.value) / self.n + z2 / (4 * self.n**2)
        half = _Z_95 * math.sqrt(spread) / (1 + z2 / self.n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.0f}" for bound in self.interval)
        return f"{self.count}/{self.n} ({100 * self.value:.1f} %, 95 % {low}–{high})"


def auroc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """The chance that a positive scores above a negative; ties count half. NaN if one is empty."""
    if not len(positive) or not len(negative):
        return math.nan
    ordered = np.sort(np.asarray(negative, dtype=np.float64))
    values = np.asarray(positive, dtype=np.float64)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def true_positive_rate(
    positive: NDArray[np.floating], negative: NDArray[np.floating], *, false_positive_rate: float
) -> float:
    """Share of positives above a limit that at most this share of negatives exceeds."""
    if not len(positive) or not len(negative):
        return math.nan
    limit = np.quantile(negative, 1.0 - false_positive_rate, method="higher")
    return float(np.mean(np.asarray(positive) > limit))
