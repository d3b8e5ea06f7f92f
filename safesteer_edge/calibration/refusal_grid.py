"""Refusals that many settings would give on many answers at once, steering left aside.

The same numbers as `guard.risk.RunningRisk`, token for token, for whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Trajectories = Sequence[NDArray[np.float64]]  # scores of one answer's tokens, float64 (n_tokens,)


class AnswerTable:
    """Answers of different lengths as one array."""

    def __init__(self, rows: Trajectories) -> None:
        self.n_answers = len(rows)
        n_steps = max((len(row) for row in rows), default=0)
        # Of no answer: NaN, which is above nothing.
        self.scores = np.full((len(rows), n_steps), np.nan)
        for index, row in enumerate(rows):
            self.scores[index, : len(row)] = row
        self._risk_by_decay: dict[float, NDArray[np.float64]] = {}
        self._largest_risks: dict[tuple[float, int], NDArray[np.float64]] = {}
        self._longest_runs: dict[float, NDArray[np.int64]] = {}

    def largest_scores(self) -> NDArray[np.float64]:
        """Of each answer: float64 (n_answers,)."""
        return _largest(self.scores)

    def largest_risks(self, decay: float, min_steps: int) -> NDArray[np.float64]:
        """The running risk's largest value from step `min_steps` on; 0 for shorter answers."""
        key = (decay, min_steps)
        if key not in self._largest_risks:
            self._largest_risks[key] = _largest(self._risks(decay)[:, min_steps - 1 :])
        return self._largest_risks[key]

    def longest_runs(self, threshold: float) -> NDArray[np.int64]:
        """Most tokens in a row with a score above the threshold: int64 (n_answers,)."""
        if threshold not in self._longest_runs:
            self._longest_runs[threshold] = self._count_runs(threshold)
        return self._longest_runs[threshold]

    def _count_runs(self, threshold: float) -> NDArray[np.int64]:
        longest = np.zeros(self.n_answers, dtype=np.int64)
        current = np.zeros(self.n_answers, dtype=np.int64)
        for step in range(self.scores.shape[1]):
            current = np.where(self.scores[:, step] > threshold, current + 1, 0)
            longest = np.maximum(longest, current)
        return longest

    def _risks(self, decay: float) -> NDArray[np.float64]:
        """The running risk after each token: float64 (n_answers, n_steps), NaN after the end."""
        if decay not in self._risk_by_decay:
            risks = np.empty_like(self.scores)
            value = np.zeros(self.n_answers)
            for step in range(self.scores.shape[1]):
                weight = max(1.0 - decay, 1.0 / (step + 1))
                value = value + (self.scores[:, step] - value) * weight
                risks[:, step] = value
            self._risk_by_decay[decay] = risks
        return self._risk_by_decay[decay]


def _largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    filled = np.where(np.isnan(values), 0.0, values)
    return filled.max(axis=1, initial=0.0)
