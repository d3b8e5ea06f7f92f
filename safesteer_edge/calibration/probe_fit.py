"""Fitting a linear Decoding-Probe on harvested answers (scikit-learn), with honest scores.

Everything that is decided from scores (calibration, thresholds) is decided from out-of-fold ones:
folds are cut by request, and a matched pair never straddles a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.harvest import HarvestedAnswer
from safesteer_edge.errors import SettingsError

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class FitSettings:
    """regularisation: scikit-learn's C. n_positions: positions of each answer that are fitted."""

    regularisation: float
    n_positions: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """score(h) = sigmoid(slope · (w · (h − mean) / scale + bias) + intercept).

    mean, scale, weights: float64 (n_features,). slope, intercept: Platt's calibration.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float
    slope: float
    intercept: float

    def decisions(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Uncalibrated margins: float64 (n,) for states (n, n_features)."""
        return ((states - self.mean) / self.scale) @ self.weights + self.bias

    def scores(self, states: NDArray[np.floating]) -> NDArray[np.float64]:
        """Harmful scores in [0, 1]: float64 (n,)."""
        return self.calibrated(self.decisions(states))

    def calibrated(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Margins to scores."""
        return 1.0 / (1.0 + np.exp(-np.clip(self.slope * decisions + self.intercept, -60, 60)))


def fit_probe(
    answers: Sequence[HarvestedAnswer], settings: FitSettings
) -> tuple[FittedProbe, list[NDArray[np.float64]]]:
    """Fit on all answers; also return each answer's out-of-fold scores at all its positions.

    Scores: float64 (n_tokens,) per answer, from a probe that never saw the answer's request.
    Cost: N_FOLDS + 1 fits. Raises SettingsError if a class is missing.
    """
    labels = np.array([answer.label for answer in answers])
    if labels.min(initial=1) == labels.max(initial=0):
        raise SettingsError("the answers are all of one kind; give harmful and harmless requests")
    folds = _folds(answers, settings.seed)
    margins: list[NDArray[np.float64]] = [np.empty(0)] * len(answers)
    for fold in range(N_FOLDS):
        kept = [answer for answer, at in zip(answers, folds, strict=True) if at != fold]
        probe = _fit_uncalibrated(kept, settings)
        for index, answer in enumerate(answers):
            if folds[index] == fold:
                margins[index] = probe.decisions(answer.states[1:].astype(np.float64))
    slope, intercept = _platt(answers, margins, settings)
    whole = _fit_uncalibrated(answers, settings)
    fitted = FittedProbe(whole.mean, whole.scale, whole.weights, whole.bias, slope, intercept)
    return fitted, [fitted.calibrated(margin) for margin in margins]


def select_layers(
    answers: Sequence[HarvestedAnswer], harvested: Sequence[int], wanted: Sequence[int]
) -> list[HarvestedAnswer]:
    """The same answers with the states of the wanted layers only, joined in the order wanted.

    harvested: the layers whose states the answers hold, in order.
    """
    slots = [list(harvested).index(layer) for layer in wanted]
    n_embd = answers[0].states.shape[1] // len(harvested)
    columns = np.concatenate([np.arange(slot * n_embd, (slot + 1) * n_embd) for slot in slots])
    return [replace(answer, states=answer.states[:, columns]) for answer in answers]


def _fit_uncalibrated(answers: Sequence[HarvestedAnswer], settings: FitSettings) -> FittedProbe:
    from sklearn.linear_model import LogisticRegression

    states = np.concatenate([_fitted_rows(answer, settings) for answer in answers])
    states = states.astype(np.float32)
    labels = _position_labels(answers, settings)
    mean = states.mean(axis=0, dtype=np.float64)
    scale = states.std(axis=0, dtype=np.float64) + 1e-6
    states -= mean.astype(np.float32)
    states /= scale.astype(np.float32)
    model = LogisticRegression(
        C=settings.regularisation, class_weight="balanced", max_iter=400, tol=1e-3
    ).fit(states, labels)
    return FittedProbe(mean, scale, model.coef_[0].astype(np.float64), _intercept(model), 1.0, 0.0)


def _platt(
    answers: Sequence[HarvestedAnswer],
    margins: Sequence[NDArray[np.float64]],
    settings: FitSettings,
) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([margin[: settings.n_positions] for margin in margins])
    model = LogisticRegression(C=1e6).fit(rows[:, np.newaxis], _position_labels(answers, settings))
    return float(np.asarray(model.coef_).item()), _intercept(model)


def _intercept(model: LogisticRegression) -> float:
    return float(np.asarray(model.intercept_).item())


def _fitted_rows(answer: HarvestedAnswer, settings: FitSettings) -> NDArray[np.float16]:
    return answer.states[1 : settings.n_positions + 1]


def _position_labels(
    answers: Sequence[HarvestedAnswer], settings: FitSettings
) -> NDArray[np.int64]:
    return np.concatenate(
        [np.full(len(_fitted_rows(answer, settings)), answer.label) for answer in answers]
    )


def _folds(answers: Sequence[HarvestedAnswer], seed: int) -> list[int]:
    """A fold for each answer; answers of one request or one matched pair share theirs."""
    groups = sorted({answer.request.pair_id or answer.request.id for answer in answers})
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_by_group = {groups[group]: int(at) % N_FOLDS for at, group in enumerate(order)}
    return [fold_by_group[answer.request.pair_id or answer.request.id] for answer in answers]
