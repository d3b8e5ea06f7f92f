"""A probe of prompts alone: does a request ask for harm?

It reads the state at the prompt's last position, and the mean one over the message's words: of what
is asked a small model keeps little to the end. On SmolLM2-135M both tell harmless twins apart with
an AUROC of 0.91, the last state alone with 0.88 (out of fold).

Harmful requests against all others; harmless twins, borderline and ordinary ones each have a third
of the others' say, however many of them there are. Scores come from a fit without the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import LABELS, Request

_FORMS: Final = (ProbeForm("linear", 1e-3), ProbeForm("linear", 3e-3))
# Weights are whole repeats of a row: this many for a row of the commonest kind of the others.
_LEAST_REPEATS: Final = 4
_DIGITS: Final = 4
# AUROC: where the twins are told apart by chance, only topics are, and any question is an alarm.
_LEAST_IN_A_LANGUAGE: Final = {"ordinary": 0.9, "borderline": 0.75, "harmless": 0.7}


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
