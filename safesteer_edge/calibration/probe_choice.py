"""Choosing a probe's form and layers, and saying honestly how good the choice is.

Candidates are fitted on the train split and judged on the calibration split: by whether they rank
a complying answer over a refusing one early on, and by how many harmful answers they find at 1 to
5 % false alarms (at 1 % alone, one benign answer would decide). The estimate comes from nested
cross-validation: the choice is made again for each outer fold from the requests outside it, and the
fold's requests are scored by what was chosen. The best is fitted on everything, and the policy is
chosen from its out-of-fold scores.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.policy_fit import AnswerScores, PolicyChoice, choose_policy
from safesteer_edge.calibration.probe_fit import (
    FitSettings,
    FittedProbe,
    ProbeForm,
    fit_probe,
    fit_uncalibrated,
    request_folds,
)
from safesteer_edge.calibration.prompt_fit import (
    PlannedReading,
    fit_prompt_probe,
    fit_readings,
    is_covered,
)
from safesteer_edge.calibration.steering_fit import with_steering
from safesteer_edge.errors import SettingsError
from safesteer_edge.guard.readings import ReadingCurves
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.cache import N_EARLY_STATES
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, Carrier
from safesteer_edge.harvest.probe_quality import N_STEPS, ProbeQuality, quality_of_scores
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import Label

N_OUTER_FOLDS: Final = 3
# The policy, which comes later, decides how much the prompt counts, and an answer's first tokens:
# these are mid-range.
_RISK: Final = {"prompt_weight": 32, "answer_prior": 4}
_MAX_ROWS: Final = 16_000  # of a fit that compares
_LEAST_COMPLYING: Final = 30  # answers to harmful requests that limits are chosen by
_ONE_IN: Final = 4  # requests is judged on, where the splits do not say which
# The same answers, in the same order, with the states of these layers joined.
AnswersAt = Callable[[Sequence[int]], list[HarvestedAnswer]]
_Parts = tuple[list[HarvestedAnswer], list[HarvestedAnswer]]


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
        """What the choice maximises: harmful answers found, and early ranking of candidates.

        The former counts three times: the running risk stops more answers than steering turns.
        """
        found, early = self.quality.found_at_few_percent, self.quality.early_candidate
        found = 0.0 if math.isnan(found) else found
        return found if math.isnan(early) else (3 * found + early) / 4


@dataclass(frozen=True, slots=True)
class ProbeChoice:
    """best: for all requests. nested: of the whole procedure, on requests that it did not see;

    None where the requests are too few to cut them once more.
    """

    best: ProbeCandidate
    judged: tuple[JudgedCandidate, ...]
    nested: ProbeQuality | None
    nested_choices: tuple[ProbeCandidate, ...]


def choose_probe(
    answers_at: AnswersAt,
    candidates: Sequence[ProbeCandidate],
    progress: Callable[[int, int], None] = lambda n_done, n_total: None,
    *,
    is_nested: bool = True,
    max_rows: int = _MAX_ROWS,
) -> ProbeChoice:
    """Choose among the candidates. progress: fits that are done, and all.

    is_nested: False leaves the honest estimate of the choice out, which takes most of the fits.
    max_rows: of a fit, see FitSettings.

    Raises SettingsError for too few requests.
    """
    n_done, n_folds = itertools.count(1), 0

    def step() -> None:
        progress(next(n_done), (n_folds + 1) * len(candidates) + n_folds)

    # One set of layers after the other: the states of one are in memory at a time.
    judged: dict[ProbeCandidate, list[JudgedCandidate]] = {}
    for layers in dict.fromkeys(candidate.layers for candidate in candidates):
        answers = answers_at(layers)
        n_folds = _n_outer_folds(answers) if is_nested else 0
        for candidate in (each for each in candidates if each.layers == layers):
            judged[candidate] = []
            for fold in (None, *range(n_folds)):
                outside = _outside(answers, fold)
                judged[candidate].append(_judged(outside, candidate, max_rows))
                step()
        del answers
    whole = [judged[candidate][0] for candidate in candidates]
    chosen = [
        _best([judged[candidate][1 + fold] for candidate in candidates]) for fold in range(n_folds)
    ]
    nested = _nested(answers_at, chosen, step, max_rows) if chosen else None
    return ProbeChoice(_best(whole), tuple(whole), nested, tuple(chosen))


def _n_outer_folds(answers: Sequence[HarvestedAnswer]) -> int:
    """None where candidates could not be judged without one, for too few requests were left."""
    outside = [_outside(answers, fold) for fold in range(N_OUTER_FOLDS)]
    return 0 if any(_parts(part) is None for part in outside) else N_OUTER_FOLDS


def _parts(answers: Sequence[HarvestedAnswer]) -> _Parts | None:
    """What to fit on and what to judge on: the splits, or by lot where a split lacks a kind."""
    by_split: _Parts = (
        [answer for answer in answers if answer.request.split == "train"],
        [answer for answer in answers if answer.request.split == "calibration"],
    )
    folds = request_folds(answers, n_folds=_ONE_IN)
    by_lot: _Parts = (
        [answer for answer, fold in zip(answers, folds, strict=True) if fold],
        [answer for answer, fold in zip(answers, folds, strict=True) if not fold],
    )
    for parts in (by_split, by_lot):
        if all({answer.label for answer in part} == {0, 1} for part in parts):
            return parts
    return None


def _nested(
    answers_at: AnswersAt,
    chosen: Sequence[ProbeCandidate],
    step: Callable[[], None],
    max_rows: int,
) -> ProbeQuality:
    """Each outer fold's answers, scored by what was chosen and fitted outside it."""
    scores: dict[int, NDArray[np.float32]] = {}
    answers: list[HarvestedAnswer] = []
    for layers in dict.fromkeys(candidate.layers for candidate in chosen):
        answers = answers_at(layers)
        folds = request_folds(answers, n_folds=N_OUTER_FOLDS)
        for fold, candidate in enumerate(chosen):
            if candidate.layers == layers:
                probe = _fitted(_outside(answers, fold), candidate, max_rows)
                scores |= {
                    index: _scores(probe, answer)
                    for index, answer in enumerate(answers)
                    if folds[index] == fold
                }
                step()
    rows = [scores[index] for index in range(len(answers))]
    return quality_of_scores(answers, rows, **_RISK)


def _outside(answers: Sequence[HarvestedAnswer], fold: int | None) -> list[HarvestedAnswer]:
    """The answers that are not in the fold; None: all."""
    folds = request_folds(answers, n_folds=N_OUTER_FOLDS)
    return [answer for answer, at in zip(answers, folds, strict=True) if at != fold]


def _best(judged: Sequence[JudgedCandidate]) -> ProbeCandidate:
    return max(judged, key=lambda each: each.merit).candidate


def _judged(
    answers: Sequence[HarvestedAnswer], candidate: ProbeCandidate, max_rows: int
) -> JudgedCandidate:
    parts = _parts(answers)
    if parts is None:
        raise SettingsError(
            "cannot choose a probe: there are too few harmful or too few other requests to fit on "
            "some and judge on others; give more of both"
        )
    train, held = parts
    probe = _fitted(train, candidate, max_rows)
    scores = [_scores(probe, answer) for answer in held]
    quality = quality_of_scores(held, scores, **_RISK)
    return JudgedCandidate(candidate, quality)


def _fitted(
    answers: Sequence[HarvestedAnswer], candidate: ProbeCandidate, max_rows: int
) -> FittedProbe:
    return fit_uncalibrated(answers, FitSettings(candidate.form, N_STEPS, max_rows=max_rows))


def _scores(probe: FittedProbe, answer: HarvestedAnswer) -> NDArray[np.float32]:
    return probe.scores(answer.states[: N_STEPS + 1]).astype(np.float32)


# -- from a harvest to a probe and a policy: judge candidates, fit the best, choose its numbers ----

_N_COMPONENTS: Final = 128
_N_HIDDEN: Final = 32
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """candidate: what was chosen. prompt_probe: of prompts alone, reads the same states. readings:
    how rare its scores are in other readings.

    record: of the whole choice, JSON.
    """

    candidate: ProbeCandidate
    probe: FittedProbe
    prompt_probe: FittedProbe
    readings: ReadingCurves | None
    policy: PolicyChoice
    record: dict[str, Any]


def probe_candidates(
    layer_sets: Sequence[tuple[int, ...]],
    regularisations: Sequence[float],
    *,
    only_linear: bool = False,
) -> tuple[ProbeCandidate, ...]:
    """Linear probes on every set of layers; PCA and MLP on the largest, where they have a use."""
    largest = max(layer_sets, key=len)
    linear = tuple(
        ProbeCandidate(layers, ProbeForm("linear", regularisation))
        for layers in layer_sets
        for regularisation in regularisations
    )
    if only_linear:
        return linear
    return (
        *linear,
        ProbeCandidate(largest, ProbeForm("pca-linear", 0.01, n_components=_N_COMPONENTS)),
        ProbeCandidate(largest, ProbeForm("mlp", 1.0, _N_COMPONENTS, _N_HIDDEN)),
    )


def fit_chosen_probe(
    harvested: Harvest,
    candidates: Sequence[ProbeCandidate],
    targets: FalseAlarmTargets,
    progress: Progress,
    *,
    is_nested: bool = True,
    max_rows: int | None = None,
    readings: Sequence[PlannedReading] = (),
    read: Harvest | None = None,
) -> ProbeResult:
    """Choose, fit on everything, and choose the policy from out-of-fold scores.

    readings: what is read beside the prompts, harvested as `read`. is_nested: see `choose_probe`.
    max_rows: of a fit, see FitSettings.
    Cost for the embedded default: some minutes. Raises SettingsError for too few requests.
    """
    choice = choose_probe(
        lambda layers: harvested.answers(layers, n_rows=N_EARLY_STATES),
        candidates,
        lambda n_done, n_total: progress("comparing probes", n_done, n_total),
        is_nested=is_nested,
        max_rows=min(_MAX_ROWS, max_rows or _MAX_ROWS),
    )
    answers = harvested.answers(choice.best.layers)
    progress("fitting the probe", 0, 2)
    prompt = fit_prompt_probe(answers)
    languages = prompt.record["languages"]
    covered = [name for name, found in languages.items() if is_covered(found)]
    if len(covered) < len(languages):
        # What the model cannot read teaches nothing, and would set every limit.
        answers = [
            a for a in answers if not a.request.is_translated or a.request.language in covered
        ]
        prompt = fit_prompt_probe(answers)
    fitted = fit_readings(
        prompt, answers, readings, read.answers(choice.best.layers) if read else ()
    )
    progress("fitting the probe", 1, 2)
    fit = FitSettings(choice.best.form)
    probe, scores = fit_probe(answers, replace(fit, max_rows=max_rows or fit.max_rows))
    progress("fitting the probe", 2, 2)
    by_request = _by_request(
        answers,
        [np.concatenate([[at], row[1:]]) for at, row in zip(fitted.scores, scores, strict=True)],
    )
    policy = with_steering(choose_policy(by_request, targets), by_request, targets)
    separation = auroc(_means(by_request.harmful), _means(by_request.ordinary))
    nested = choice.nested and {
        "chosen": [_named(each) for each in choice.nested_choices],
        **quality_to_json(choice.nested),
    }
    record = {
        "splits": ["train", "calibration"],
        "targets": asdict(targets),
        "chosen": _named(choice.best),
        "tried": [_tried(each) for each in choice.judged],
        "nested": nested,
        "positive_class": "harmful",
        "n_answers": len(answers),
        "n_own": dict(Counter(a.request.label for a in answers if a.kind == "own")),
        "n_judged": {name: len(getattr(by_request, name)) for name in policy.touched},
        "n_set_aside": probe.n_set_aside,
        "prompt_probe": prompt.record | {"languages": languages, "covers": ["en", *covered]},
        "readings": fitted.false_alarms(answers, policy.policy.prompt_limit),
        "score_calibration": probe.calibration.to_json(),
        "out_of_fold": {
            "auroc_mean_score_harmful_against_ordinary": round(separation, _DIGITS),
            "refused": _rounded(asdict(policy.refused)),
        },
    }
    return ProbeResult(choice.best, probe, prompt.probe, fitted.curves, policy, record)


def _tried(judged: JudgedCandidate) -> dict[str, Any]:
    quality = judged.quality
    figures = {
        "merit": judged.merit,
        "early_candidate": quality.early_candidate,
        "mean_against_ordinary": quality.mean_against_ordinary,
        "mean_against_borderline": quality.mean_against_borderline,
        "mean_against_harmless_twins": quality.mean_against_harmless_twins,
        "found_at_1_percent_ordinary": quality.found_at_1_percent_ordinary.value,
        "found_at_1_percent_borderline": quality.found_at_1_percent_borderline.value,
        "found_at_few_percent": quality.found_at_few_percent,
    }
    return {**_named(judged.candidate), **_rounded(figures)}


def _named(candidate: ProbeCandidate) -> dict[str, Any]:
    form = asdict(candidate.form)
    return {"layers": list(candidate.layers), "form": form.pop("kind"), **form}


def quality_to_json(quality: ProbeQuality) -> dict[str, Any]:
    """The quality as JSON values, rounded; NaN stays."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return round(value, _DIGITS) if isinstance(value, float) else value

    return plain(asdict(quality))


def _by_request(
    answers: Sequence[HarvestedAnswer], scores: Sequence[NDArray[np.float64]]
) -> AnswerScores:
    alone: dict[str, float] = {}
    for answer, row in zip(answers, scores, strict=True):
        if answer.carrier in ("text", "wrapped"):
            name = answer.request.id
            # Here and below not max(), which may drop a NaN.
            alone[name] = float(np.maximum(row[0], alone.get(name, 0.0)))
    n_complying = sum(answer.kind == "own" and answer.label == 1 for answer in answers)
    # What limits are to stop is seldom an own answer of a model that declines by itself.
    kinds = ("own",) if n_complying >= _LEAST_COMPLYING else ("own", "led")
    return AnswerScores.of(
        (
            (answer.request.label, answer.label == 1, _with_words_alone(answer, row, alone))
            for answer, row in zip(answers, scores, strict=True)
            if answer.kind in kinds
        ),
        _benign_prompts(answers, scores),
    )


def _benign_prompts(
    answers: Sequence[HarvestedAnswer], scores: Sequence[NDArray[np.float64]]
) -> dict[Label, NDArray[np.float64]]:
    """Scores of all benign prompts, each once in each way in which it came."""
    found: dict[Label, dict[tuple[str, Carrier], float]] = {"ordinary": {}, "borderline": {}}
    for answer, row in zip(answers, scores, strict=True):
        if answer.request.label in found and answer.kind in ("own", "prompt"):
            found[answer.request.label][answer.request.id, answer.carrier] = float(row[0])
    return {label: np.array([*each.values()]) for label, each in found.items() if each}


def _with_words_alone(
    answer: HarvestedAnswer, row: NDArray[np.float64], alone: Mapping[str, float]
) -> NDArray[np.float64]:
    """The scores with the prompt's as the session has it: where there is a picture, the highest of
    the prompt's and of what is said and written (`session_guard.words_score`), whether or not a
    user's guard reads pictures."""
    if answer.carrier not in ("beside", *DRAWN_CARRIERS) or answer.request.id not in alone:
        return row
    return np.concatenate([[np.maximum(row[0], alone[answer.request.id])], row[1:]])


def _means(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array([row[1:].mean() for row in rows])


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, _DIGITS) for key, value in row.items()}
