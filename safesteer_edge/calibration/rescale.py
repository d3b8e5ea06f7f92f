"""Moving a probe's scores back to chances: a line on the logits, fitted on another quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.scored_answers import ScoredAnswer
from safesteer_edge.errors import ProbeFileError

_N_POSITIONS = 32  # of each answer, as a calibration fits
# Scores are float32: nearer to 0 or 1 their logit is rounding.
_MIN_SCORE = 1e-7


@dataclass(frozen=True, slots=True)
class Rescale:
    """score → sigmoid(slope · logit(score) + intercept); slope above 0 keeps the order."""

    slope: float
    intercept: float

    def scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rescaled scores, in [0, 1]."""
        moved = self.slope * _logits(scores) + self.intercept
        return 1.0 / (1.0 + np.exp(-np.clip(moved, -60, 60)))

    def answers(self, answers: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
        """The same answers with rescaled scores."""
        return [self._answer(answer) for answer in answers]

    def _answer(self, answer: ScoredAnswer) -> ScoredAnswer:
        moved = self.scores(answer.trajectory)
        return replace(answer, scores=moved[1:], prompt_score=float(moved[0]))


IDENTITY = Rescale(1.0, 0.0)


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
