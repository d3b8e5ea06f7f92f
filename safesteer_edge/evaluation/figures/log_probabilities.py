"""Log-probabilities of a vocabulary, and how far one distribution is from another."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LogProbs = NDArray[np.float64]  # (n_vocab,)


def divergence(p: LogProbs, q: LogProbs) -> float:
    """KL(p ‖ q) in nats of two log-distributions; never below 0 but for rounding, which is cut."""
    probabilities = np.exp(p)
    terms = np.where(probabilities > 0, probabilities * (p - q), 0.0)
    return float(np.maximum(0.0, terms.sum()))  # not max(), which takes a NaN for 0


def log_softmax(logits: NDArray[np.floating]) -> LogProbs:
    """float64 (n_vocab,)."""
    values = np.asarray(logits, dtype=np.float64)
    values = values - values.max()
    return values - math.log(float(np.exp(values).sum()))
