"""A probe of prompts alone: does a request ask for harm, by the state at its last position?

Harmful requests against all others; harmless twins, borderline and ordinary ones each have a third
of the others' say, however many of them there are. Scores come from a fit without the request.
"""

from __future__ import annotations

from collections.abc import Sequence
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
)
from safesteer_edge.formats.probe_graph import ProbeGraph, logits_of
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import LABELS

_FORMS: Final = (ProbeForm("linear", 1e-3), ProbeForm("linear", 3e-3))
# Weights are whole repeats of a row: this many for a row of the commonest kind of the others.
_LEAST_REPEATS: Final = 4
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class PromptProbe:
    """probe: reads what the answers' probe reads. scores: of each answer's prompt, out of fold.

    record: JSON, how well they separate.
    """

    probe: FittedProbe
    scores: NDArray[np.float64]
    record: dict[str, Any]


def fit_prompt_probe(answers: Sequence[HarvestedAnswer], seed: int = 0) -> PromptProbe:
    """Fit on each prompt's state, once for each way in which it came; the form that errs least.

    Cost: N_FOLDS fits for each form, and one more: some 10 s for 3,700 prompts of 5,000 features.
    """
    states = np.array([answer.states[0] for answer in answers], dtype=np.float32)
    labels = np.array([answer.request.label for answer in answers])
    is_harmful = (labels == "harmful").astype(np.int64)
    is_fitted = np.array([answer.kind in ("own", "prompt") for answer in answers])
    folds = np.array(request_folds(answers, seed))
    repeats = _repeats(labels, is_fitted)

    def fitted(form: ProbeForm, chosen: NDArray[np.bool_]) -> ProbeGraph:
        data = states[chosen], is_harmful[chosen]
        return margin_graph(fit_estimator(form, *data, seed, repeats[chosen]))

    def out_of_fold(form: ProbeForm) -> NDArray[np.float64]:
        margins = np.zeros(len(answers))
        for fold in range(N_FOLDS):
            inside = folds == fold
            if inside.any() and not inside.all():
                graph = fitted(form, is_fitted & ~inside)
                margins[inside] = logits_of(graph, states[inside])[:, 0]
        return margins

    def calibrated(margins: NDArray[np.float64]) -> ScoreCalibration:
        chosen = (margins[is_fitted], is_harmful[is_fitted], folds[is_fitted])
        # A sigmoid: an isotonic line would make ties, and limits are set between scores.
        return fit_calibration(*chosen, "platt")

    tried = [
        (form, margins, calibrated(margins)) for form in _FORMS for margins in [out_of_fold(form)]
    ]
    form, margins, calibration = min(tried, key=lambda each: each[2].brier)
    graph = fitted(form, is_fitted)
    graph = replace(graph, calibration=calibration.platt, head=calibration.head)
    scores = calibration.scores(margins)
    record = {
        "regularisation": form.regularisation,
        "n_prompts": int(is_fitted.sum()),
        "auroc": _separation(scores[is_fitted], labels[is_fitted]),
        "score_calibration": calibration.to_json(),
    }
    return PromptProbe(FittedProbe(graph, form, calibration), scores, record)


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
