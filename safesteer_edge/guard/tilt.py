"""The guarded distribution: q(c) ∝ p(c) · exp(−λ · max(0, s(c) − τ))."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError


@dataclass(frozen=True, slots=True)
class Tilt:
    """One step's tilt: strength λ (already raised by the running risk) and threshold τ."""

    strength: float
    threshold: float

    def penalties(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """λ · max(0, s − τ) for each score: float64, same shape, ≥ 0.

        Raises GuardError for a NaN, which would win or lose every comparison.
        """
        if np.isnan(scores).any():
            raise GuardError("a candidate has no score, so the guard cannot judge this step")
        excess = np.maximum(0.0, np.asarray(scores, dtype=np.float64) - self.threshold)
        return self.strength * excess

    def acceptance(self, score: float) -> float:
        """The chance exp(−λ · max(0, s − τ)) that a drawn candidate is kept as it is.

        Raises GuardError for a NaN, which max() would take for 0.
        """
        if math.isnan(score):
            raise GuardError("a candidate has no score, so the guard cannot judge this step")
        return float(np.exp(-self.strength * max(0.0, score - self.threshold)))

    def guarded_probs(
        self, log_probs: NDArray[np.float64], scores: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """q over the candidates: float64 (k,), sums to 1."""
        return normalised_exp(log_probs - self.penalties(scores))


def normalised_exp(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(log_weights) scaled to sum to 1, safe from overflow."""
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def draw(probs: NDArray[np.float64], uniform: float) -> int:
    """The index that a uniform number in [0, 1) picks from `probs` by its cumulative sum."""
    index = int(np.searchsorted(np.cumsum(probs), uniform, side="right"))
    # The sum may end a rounding error below 1.
    return min(index, int(np.flatnonzero(probs)[-1]))
