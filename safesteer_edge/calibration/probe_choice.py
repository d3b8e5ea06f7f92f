"""Choosing a probe's form and layers, and saying honestly how good the choice is.

Candidates are fitted on the train split and judged on the calibration split: by whether they rank
a complying answer over a refusing one early on, and by how many harmful answers they find at 1 %
false alarms. The estimate comes from nested cross-validation: the choice is made again for each
outer fold from the requests outside it, and the fold's requests are scored by what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.harvest import HarvestedAnswer
from safesteer_edge.calibration.probe_fit import (
    FitSettings,
    FittedProbe,
    fit_uncalibrated,
    request_folds,
    select_layers,
)
from safesteer_edge.calibration.probe_forms import ProbeForm
from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.probe_quality import ProbeQuality, quality_of_scores

N_OUTER_FOLDS: Final = 3


@dataclass(frozen=True, slots=True)
class ProbeCandidate:
    """layers: whose states are joined, in this order."""

    layers: tuple[int, ...]
    form: ProbeForm


@dataclass(frozen=True, slots=True)
class JudgedCandidate:
    """quality: of the calibration split's answers, by a fit on the train split."""

    candidate: ProbeCandidate
    quality: ProbeQuality

    @property
    def merit(self) -> float:
        """What the choice maximises: early ranking of candidates, and harmful answers found."""
        quality = self.quality
        found = [quality.found_at_1_percent_ordinary, quality.found_at_1_percent_borderline]
        shares = [share.value for share in found if share.n] or [0.0]
        early = quality.early_candidate
        merits = [sum(shares) / len(shares), *([] if math.isnan(early) else [early])]
        return sum(merits) / len(merits)


@dataclass(frozen=True, slots=True)
class ProbeChoice:
    """best: for all requests. nested: of the whole procedure, on requests that it did not see."""

    best: ProbeCandidate
    judged: tuple[JudgedCandidate, ...]
    nested: ProbeQuality
    nested_choices: tuple[ProbeCandidate, ...]


@dataclass(frozen=True, slots=True)
class ChoiceSettings:
    """harvested: the layers whose states the answers hold, in order. n_positions: see fits."""

    harvested: tuple[int, ...]
    candidates: tuple[ProbeCandidate, ...]
    n_positions: int = 32
    seed: int = 0

    @property
    def n_fits(self) -> int:
        """How many fits a choice takes."""
        return (N_OUTER_FOLDS + 1) * len(self.candidates) + N_OUTER_FOLDS


def choose_probe(
    answers: Sequence[HarvestedAnswer],
    settings: ChoiceSettings,
    progress: Callable[[int], None] = lambda n_done: None,
) -> ProbeChoice:
    """Choose among the candidates. progress: the number of fits that are done.

    Raises SettingsError if the train split, or the calibration split, lacks a kind of answer.
    """
    steps = _Steps(progress)
    judged = _judged(answers, settings, steps)
    folds = np.array(request_folds(answers, settings.seed)) % N_OUTER_FOLDS
    scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(answers)
    chosen: list[ProbeCandidate] = []
    for fold in range(N_OUTER_FOLDS):
        outside = [answer for answer, at in zip(answers, folds, strict=True) if at != fold]
        best = _best(_judged(outside, settings, steps))
        chosen.append(best)
        probe = _fitted(outside, best, settings)
        steps.add()
        inside: list[int] = np.flatnonzero(folds == fold).tolist()
        selected = select_layers([answers[i] for i in inside], settings.harvested, best.layers)
        for index, answer in zip(inside, selected, strict=True):
            scores[index] = probe.scores(answer.states).astype(np.float32)
    nested = quality_of_scores(answers, scores)
    return ProbeChoice(_best(judged), tuple(judged), nested, tuple(chosen))


class _Steps:
    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._n_done = 0

    def add(self) -> None:
        self._n_done += 1
        self._progress(self._n_done)


def _best(judged: Sequence[JudgedCandidate]) -> ProbeCandidate:
    return max(judged, key=lambda each: each.merit).candidate


def _judged(
    answers: Sequence[HarvestedAnswer], settings: ChoiceSettings, steps: _Steps
) -> list[JudgedCandidate]:
    train = [answer for answer in answers if answer.request.split == "train"]
    held = [answer for answer in answers if answer.request.split == "calibration"]
    for split, ours in (("train", train), ("calibration", held)):
        if {answer.label for answer in ours} != {0, 1}:
            raise SettingsError(
                f"cannot choose a probe: the {split} split's answers are not of both kinds; give "
                "more requests, harmful and harmless, in every split"
            )
    found: list[JudgedCandidate] = []
    for candidate in settings.candidates:
        probe = _fitted(train, candidate, settings)
        selected = select_layers(held, settings.harvested, candidate.layers)
        scores = [probe.scores(answer.states).astype(np.float32) for answer in selected]
        found.append(JudgedCandidate(candidate, quality_of_scores(held, scores)))
        steps.add()
    return found


def _fitted(
    answers: Sequence[HarvestedAnswer], candidate: ProbeCandidate, settings: ChoiceSettings
) -> FittedProbe:
    selected = select_layers(answers, settings.harvested, candidate.layers)
    fit = FitSettings(candidate.form, settings.n_positions, seed=settings.seed)
    return fit_uncalibrated(selected, fit)
