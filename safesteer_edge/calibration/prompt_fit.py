"""A probe of prompts alone: does a request ask for harm? And what other readings of one may say.

It reads the state at the prompt's last position, and the mean one over the message's words: of what
is asked a small model keeps little to the end. On SmolLM2-135M both tell harmless twins apart with
an AUROC of 0.91, the last state alone with 0.88 (out of fold).

Harmful requests against all others; harmless twins, borderline and ordinary ones each have a third
of the others' say, however many of them there are. Scores come from a fit without the request.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.probe_calibration import ScoreCalibration, fit_calibration
from safesteer_edge.calibration.probe_fit import (
    N_FOLDS,
    FittedProbe,
    ProbeForm,
    fit_estimator,
    margin_graph,
    request_folds,
    request_group,
)
from safesteer_edge.formats.probe_graph import ProbeGraph, logits_of
from safesteer_edge.guard.readings import (
    Reading,
    ReadingCurves,
    ReadingKind,
    combined_score,
    curve_of,
    readings_of,
)
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.cache import HarvestSettings
from safesteer_edge.harvest.carriers import TEXT_CARRIERS, Carrier, written_words
from safesteer_edge.harvest.units import PlannedRequest, turn_of
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import LABELS, Request

_FORMS: Final = (ProbeForm("linear", 1e-3), ProbeForm("linear", 3e-3))
# Weights are whole repeats of a row: this many for a row of the commonest kind of the others.
_LEAST_REPEATS: Final = 4
_DIGITS: Final = 4
# AUROC: where the twins are told apart by chance, only topics are, and any question is an alarm.
# Of some twenty of a kind it has a standard error of 0.07 or so: 0.7 of twins was no sign yet.
_LEAST_IN_A_LANGUAGE: Final = {"ordinary": 0.9, "borderline": 0.75, "harmless": 0.75}


@dataclass(frozen=True, slots=True, eq=False)
class PromptProbe:
    """probe: reads `HarvestedAnswer.prompt`. scores: of each answer's prompt, out of fold.

    record: JSON, how well they separate. fold_graphs: a fit without each fold's requests.
    """

    probe: FittedProbe
    scores: NDArray[np.float64]
    record: dict[str, Any]
    fold_graphs: tuple[ProbeGraph | None, ...]
    fold_by_group: Mapping[str, int]

    def out_of_fold(
        self, states: NDArray[np.floating], requests: Sequence[Request]
    ) -> NDArray[np.float64]:
        """Scores of other states, each by the fit that has not seen its request."""
        margins = np.zeros(len(states))
        folds = np.array([self.fold_by_group[request_group(request)] for request in requests])
        for fold, graph in enumerate(self.fold_graphs):
            inside = folds == fold
            if graph is not None and inside.any():
                margins[inside] = logits_of(graph, states[inside])[:, 0]
        return self.probe.calibration.scores(margins)


def fit_prompt_probe(answers: Sequence[HarvestedAnswer], seed: int = 0) -> PromptProbe:
    """Fit on each prompt's state, once for each way in which it came; the form that errs least.

    Cost: N_FOLDS fits for each form, and one more: some 10 s for 3,700 prompts of 5,000 features.
    """
    states = np.array([answer.prompt for answer in answers])
    labels = np.array([answer.request.label for answer in answers])
    is_harmful = (labels == "harmful").astype(np.int64)
    is_fitted = np.array([answer.kind in ("own", "prompt") for answer in answers])
    folds = np.array(request_folds(answers, seed))
    repeats = _repeats(labels, is_fitted)

    def fitted(form: ProbeForm, chosen: NDArray[np.bool_]) -> ProbeGraph:
        data = states[chosen].astype(np.float32), is_harmful[chosen]
        return margin_graph(fit_estimator(form, *data, seed, repeats[chosen]))

    def out_of_fold(
        form: ProbeForm,
    ) -> tuple[NDArray[np.float64], tuple[ProbeGraph | None, ...]]:
        margins = np.zeros(len(answers))
        graphs: list[ProbeGraph | None] = []
        for fold in range(N_FOLDS):
            inside = folds == fold
            graph = None
            if inside.any() and not inside.all():
                graph = fitted(form, is_fitted & ~inside)
                margins[inside] = logits_of(graph, states[inside])[:, 0]
            graphs.append(graph)
        return margins, tuple(graphs)

    def calibrated(margins: NDArray[np.float64]) -> ScoreCalibration:
        chosen = (margins[is_fitted], is_harmful[is_fitted], folds[is_fitted])
        # A sigmoid: an isotonic line would make ties, and limits are set between scores.
        return fit_calibration(*chosen, "platt")

    tried = [
        (form, margins, graphs, calibrated(margins))
        for form in _FORMS
        for margins, graphs in [out_of_fold(form)]
    ]
    form, margins, graphs, calibration = min(tried, key=lambda each: each[3].brier)
    graph = fitted(form, is_fitted)
    graph = replace(graph, calibration=calibration.platt, head=calibration.head)
    scores = calibration.scores(margins)
    record = {
        "regularisation": form.regularisation,
        "n_prompts": int(is_fitted.sum()),
        "auroc": _separation(scores[is_fitted], labels[is_fitted]),
        "languages": _languages(answers, scores),
        "score_calibration": calibration.to_json(),
    }
    groups = [request_group(answer.request) for answer in answers]
    fold_by_group = dict(zip(groups, folds.tolist(), strict=True))
    probe = FittedProbe(graph, form, calibration)
    return PromptProbe(probe, scores, record, graphs, fold_by_group)


def _repeats(labels: NDArray[np.str_], is_fitted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """As how many rows each counts: kinds of requests that are not harmful count alike."""
    n = {label: int(np.sum(is_fitted & (labels == label))) for label in LABELS}
    most = max(n[label] for label in LABELS if label != "harmful")
    each = {label: round(_LEAST_REPEATS * most / max(1, count)) for label, count in n.items()}
    return np.array([max(1, each[label]) for label in labels], dtype=np.int64)


def _separation(scores: NDArray[np.float64], labels: NDArray[np.str_]) -> dict[str, float | None]:
    """AUROC of harmful prompts against each other kind; null for a kind that is missing."""
    harmful = scores[labels == "harmful"]
    values = {
        label: auroc(harmful, scores[labels == label]) for label in LABELS if label != "harmful"
    }
    return {
        label: None if np.isnan(value) else round(value, _DIGITS) for label, value in values.items()
    }


def is_covered(found: Mapping[str, float | None]) -> bool:
    """Whether requests of a language are told apart well enough to judge any: see `_languages`."""
    return all((found[kind] or 0.0) >= least for kind, least in _LEAST_IN_A_LANGUAGE.items())


def _languages(
    answers: Sequence[HarvestedAnswer], scores: NDArray[np.float64]
) -> dict[str, dict[str, float | int | None]]:
    """Of each language that requests were translated into: n, and how well they are told apart."""
    found: dict[str, dict[str, float | int | None]] = {}
    for language in sorted({a.request.language for a in answers if a.request.is_translated}):
        ours = np.array(
            [a.request.is_translated and a.request.language == language for a in answers]
        )
        labels = np.array([answer.request.label for answer in answers])[ours]
        found[language] = {"n": int(ours.sum()), **_separation(scores[ours], labels)}
    return found


# -- how rare scores of other readings are among benign prompts: many must cost no false alarms ----
# What `guard.readings` would read of harvested prompts is harvested too: of those that are
# answered, and of some benign ones among other words. Scores are out of fold, by the request.

_BENIGN: Final = ("borderline", "ordinary")
_N_AMONG_WORDS: Final = 160  # benign prompts whose parts are read
_N_JOINED: Final = 100  # benign prompts that are read behind another one
_N_READINGS: Final = (0, 1, 3, 5, 9, 1_000)  # beside the typed one: where its table is cut
_LEAST: Final = 50  # readings of a kind that a curve is drawn from


@dataclass(frozen=True, slots=True)
class PlannedReading:
    """What is read beside a prompt. is_rate: it tells how often benign ones score high."""

    request: Request
    carrier: Carrier
    kind: ReadingKind
    text: str
    is_rate: bool

    @property
    def id(self) -> str:
        """Of the text: the same words are read once."""
        return f"reading/{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, eq=False)
class FittedReadings:
    """scores: of each answer's prompt, out of fold. n_readings: beside it, as it was typed."""

    curves: ReadingCurves | None
    scores: NDArray[np.float64]
    n_readings: NDArray[np.int64]

    def false_alarms(
        self, answers: Sequence[HarvestedAnswer], limit: float
    ) -> list[dict[str, int | float]]:
        """By how often they were read: benign prompts, and how many are above the limit."""
        is_benign = np.array(
            [a.request.label in _BENIGN and a.kind in ("own", "prompt") for a in answers]
        )
        found: list[dict[str, int | float]] = []
        for least, most in itertools.pairwise(_N_READINGS):
            ours = is_benign & (self.n_readings >= least) & (self.n_readings < most)
            if ours.any():
                n_above = int(np.sum(self.scores[ours] > limit))
                found.append({"n_readings": least, "n": int(ours.sum()), "n_above": n_above})
        return found


def planned_readings(units: Iterable[PlannedRequest]) -> list[PlannedReading]:
    """Of these prompts, those that are read besides."""
    units = list(units)
    prompts = {(u.request.id, u.carrier): u for u in units if u.carrier in ("text", "wrapped")}
    answered = {u.request.id for u in units if u.piece == "own" or _is_whole(u)}
    benign = [u for u in prompts.values() if u.request.label in _BENIGN]
    # The first of those that are drawn: where more requests are harvested, the same ones.
    benign.sort(key=lambda unit: (turn_of(unit.request), unit.carrier))
    in_parts = [
        [u for u in benign if u.request.label == each and len(_parts(u)) > 1] for each in _BENIGN
    ]
    n_each = _N_AMONG_WORDS // max(1, sum(map(bool, in_parts)))
    counted = {(u.request.id, u.carrier) for ours in in_parts for u in ours[:n_each]}
    found = [
        PlannedReading(unit.request, unit.carrier, reading.kind, reading.text, key in counted)
        for key, unit in prompts.items()
        if key in counted or (unit.carrier == "text" and unit.request.id in answered)
        for reading in _parts(unit)
    ]
    # Behind other messages a message is read by itself too.
    found += [
        PlannedReading(u.request, u.carrier, "readable", u.request.text, False)
        for u in units
        if u.carrier == "later" and u.request.label in _BENIGN
    ]
    plain = [u.request for u in benign if u.carrier == "text"][:_N_JOINED]
    for before, request in zip(plain[-1:] + plain[:-1], plain, strict=True):
        joined = readings_of(request.text, (before.text,))[-1]
        found.append(PlannedReading(request, "text", joined.kind, joined.text, True))
    return found


def reading_requests(readings: Iterable[PlannedReading]) -> list[Request]:
    """As requests to harvest, each text once; their label says nothing of them."""
    return list(
        {
            each.id: Request(each.id, each.text, "ordinary", "reading", "train", "und")
            for each in readings
        }.values()
    )


def reading_settings(settings: HarvestSettings) -> HarvestSettings:
    """Of a harvest that keeps each prompt's state and nothing else."""
    plan = replace(
        settings.plan,
        n_answered=0,
        n_answered_benign=0,
        n_answered_borderline=0,
        n_read=None,
        n_read_borderline=None,
        n_read_ordinary=None,
        draws=False,
        wraps=False,
    )
    return replace(settings, plan=plan)


def fit_readings(
    prompt: PromptProbe,
    answers: Sequence[HarvestedAnswer],
    readings: Sequence[PlannedReading],
    read: Sequence[HarvestedAnswer],
) -> FittedReadings:
    """The curves, and each answer's prompt's score with what its other readings say.

    prompt.scores: of these answers. read: of `reading_requests`. Without enough readings: no
    curves, and the scores as they were.
    """
    states = {answer.request.id: answer.prompt for answer in read}
    prompts = {(answer.request.id, answer.carrier) for answer in answers}
    known = [r for r in readings if r.id in states and (r.request.id, r.carrier) in prompts]
    rates = {
        kind: [each for each in known if each.is_rate and each.kind == kind]
        for kind in ("part", "joined")
    }
    if min(map(len, rates.values())) < _LEAST:
        return FittedReadings(None, prompt.scores, np.zeros(len(answers), dtype=np.int64))
    found = prompt.out_of_fold(
        np.array([states[each.id] for each in known]), [each.request for each in known]
    )
    score_of = {id(each): float(score) for each, score in zip(known, found, strict=True)}
    curves = ReadingCurves(
        typed=curve_of(
            [
                score
                for answer, score in zip(answers, prompt.scores, strict=True)
                if answer.kind in ("own", "prompt")
                and answer.request.label in _BENIGN
                and answer.carrier in TEXT_CARRIERS
            ]
        ),
        part=curve_of(_highest_of_each(rates["part"], score_of)),
        joined=curve_of([score_of[id(each)] for each in rates["joined"]]),
    )
    others: dict[tuple[str, Carrier], list[tuple[ReadingKind, float]]] = {}
    for each in known:
        if each.kind != "joined":
            place = others.setdefault((each.request.id, each.carrier), [])
            place.append((each.kind, score_of[id(each)]))
    beside = [others.get((answer.request.id, answer.carrier), []) for answer in answers]
    combined = [
        combined_score(float(score), found, curves)
        for score, found in zip(prompt.scores, beside, strict=True)
    ]
    return FittedReadings(curves, np.array(combined), np.array([len(found) for found in beside]))


def _highest_of_each(
    readings: Iterable[PlannedReading], score_of: Mapping[int, float]
) -> list[float]:
    """Of each prompt the highest score of its parts: of several some one is high by chance."""
    highest: dict[tuple[str, Carrier], float] = {}
    for each in readings:
        place = each.request.id, each.carrier
        highest[place] = max(highest.get(place, 0.0), score_of[id(each)])
    return list(highest.values())


def _is_whole(unit: PlannedRequest) -> bool:
    return unit.piece == "whole" and unit.is_answered


def _parts(unit: PlannedRequest) -> list[Reading]:
    return readings_of(written_words(unit.request, unit.carrier))
