"""Refusals that many settings would give on many answers at once, steering left aside.

The same numbers as `guard.risk.RunningRisk`, token for token, for whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError

# Scores of one answer, the prompt's first: float64 (n_tokens + 1,).
Trajectories = Sequence[NDArray[np.float64]]


class AnswerTable:
    """Answers of different lengths as one array."""

    def __init__(self, rows: Trajectories) -> None:
        """Raises GuardError for what is no score: a limit would be chosen as if it were low."""
        for row in rows:
            if not ((row >= 0.0) & (row <= 1.0)).all():  # false for NaN as well
                raise GuardError(
                    "cannot choose limits: the probe gave an answer a score that is no number in "
                    "[0, 1]; harvest again, or leave out the layers that overflow float16"
                )
        self.n_answers = len(rows)
        n_steps = max((len(row) - 1 for row in rows), default=0)
        self.prompt_scores = np.array([row[0] for row in rows])
        # Of no answer: NaN, which is above nothing.
        self.scores = np.full((len(rows), n_steps), np.nan)
        for index, row in enumerate(rows):
            self.scores[index, : len(row) - 1] = row[1:]
        self._largest_risks: dict[tuple[float, int, int, int], NDArray[np.float64]] = {}
        self._longest_runs: dict[float, NDArray[np.int64]] = {}

    def largest_scores(self) -> NDArray[np.float64]:
        """Of each answer's tokens: float64 (n_answers,)."""
        return _largest(self.scores)

    def largest_risks(
        self, decay: float, min_steps: int, prompt_weight: int = 0, answer_prior: int = 0
    ) -> NDArray[np.float64]:
        """The running risk's largest value from step `min_steps` on; 0 for shorter answers."""
        key = (decay, min_steps, prompt_weight, answer_prior)
        if key not in self._largest_risks:
            risks = self._risks(decay, np.zeros(self.n_answers), answer_prior)
            if prompt_weight:
                risks = np.maximum(risks, self._risks(decay, self.prompt_scores, prompt_weight))
            self._largest_risks[key] = _largest(risks[:, min_steps - 1 :])
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

    def _risks(self, decay: float, prior: NDArray[np.float64], n_prior: int) -> NDArray[np.float64]:
        """A moving mean after each token, the prior's values counted n_prior times before them.

        prior: (n_answers,). float64 (n_answers, n_steps), NaN after the end.
        """
        risks = np.empty_like(self.scores)
        value = prior
        for step in range(self.scores.shape[1]):
            weight = max(1.0 - decay, 1.0 / (step + 1 + n_prior))
            value = value + (self.scores[:, step] - value) * weight
            risks[:, step] = value
        return risks


def _largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    filled = np.where(np.isnan(values), 0.0, values)
    return filled.max(axis=1, initial=0.0)
