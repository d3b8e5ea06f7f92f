"""From a harvest to a probe and a policy: judge candidates, fit the best, choose its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.policy_fit import AnswerScores, PolicyChoice, choose_policy
from safesteer_edge.calibration.probe_choice import (
    ChoiceSettings,
    JudgedCandidate,
    ProbeCandidate,
    ProbeChoice,
    choose_probe,
)
from safesteer_edge.calibration.probe_fit import FitSettings, FittedProbe, fit_probe
from safesteer_edge.calibration.probe_forms import ProbeForm
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.cache import N_EARLY_ROWS
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS
from safesteer_edge.harvest.probe_quality import ProbeQuality
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.metrics.statistics import auroc
from safesteer_edge.requests.requests import Label

_N_COMPONENTS: Final = 128
_N_HIDDEN: Final = 32
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """candidate: what was chosen. record: of the whole choice, JSON."""

    candidate: ProbeCandidate
    probe: FittedProbe
    policy: PolicyChoice
    record: dict[str, Any]


def probe_candidates(
    layer_sets: Sequence[tuple[int, ...]], regularisations: Sequence[float]
) -> tuple[ProbeCandidate, ...]:
    """Linear probes on every set of layers; PCA and MLP on the largest, where they have a use."""
    largest = max(layer_sets, key=len)
    return (
        *(
            ProbeCandidate(layers, ProbeForm("linear", regularisation))
            for layers in layer_sets
            for regularisation in regularisations
        ),
        ProbeCandidate(largest, ProbeForm("pca-linear", 0.01, n_components=_N_COMPONENTS)),
        ProbeCandidate(largest, ProbeForm("mlp", 1.0, _N_COMPONENTS, _N_HIDDEN)),
    )


def fit_chosen_probe(
    harvested: Harvest,
    candidates: Sequence[ProbeCandidate],
    targets: FalseAlarmTargets,
    progress: Progress,
) -> ProbeResult:
    """Choose, fit on everything, and choose the policy from out-of-fold scores.

    Cost for the embedded default: some minutes. Raises SettingsError for too few requests.
    """
    choice = choose_probe(
        lambda layers: harvested.answers(layers, n_rows=N_EARLY_ROWS),
        ChoiceSettings(tuple(candidates)),
        lambda n_done, n_total: progress("comparing probes", n_done, n_total),
    )
    answers = harvested.answers(choice.best.layers)
    progress("fitting the probe", 0, 1)
    probe, scores = fit_probe(answers, FitSettings(choice.best.form))
    progress("fitting the probe", 1, 1)
    by_request = _by_request(answers, scores)
    policy = choose_policy(by_request, targets)
    separation = auroc(_means(by_request.harmful), _means(by_request.ordinary))
    record = {
        "splits": ["train", "calibration"],
        "targets": asdict(targets),
        **_choice_record(choice),
        "positive_class": "harmful",
        "n_answers": len(answers),
        "n_set_aside": probe.n_set_aside,
        "score_calibration": probe.calibration.to_json(),
        "out_of_fold": {
            "auroc_mean_score_harmful_against_ordinary": round(separation, _DIGITS),
            "refused": _rounded(asdict(policy.refused)),
        },
    }
    return ProbeResult(choice.best, probe, policy, record)


def _choice_record(choice: ProbeChoice) -> dict[str, Any]:
    return {
        "chosen": _named(choice.best),
        "tried": [_tried(each) for each in choice.judged],
        "nested": None
        if choice.nested is None
        else {
            "chosen": [_named(each) for each in choice.nested_choices],
            **quality_to_json(choice.nested),
        },
    }


def _tried(judged: JudgedCandidate) -> dict[str, Any]:
    quality = judged.quality
    shares = {
        "found_at_1_percent_ordinary": quality.found_at_1_percent_ordinary.value,
        "found_at_1_percent_borderline": quality.found_at_1_percent_borderline.value,
        "found_at_few_percent": quality.found_at_few_percent,
    }
    figures = {
        "merit": judged.merit,
        "early_candidate": quality.early_candidate,
        "mean_against_ordinary": quality.mean_against_ordinary,
        "mean_against_borderline": quality.mean_against_borderline,
        "mean_against_harmless_twins": quality.mean_against_harmless_twins,
    }
    return {**_named(judged.candidate), **_rounded({**figures, **shares})}


def _named(candidate: ProbeCandidate) -> dict[str, Any]:
    form = candidate.form
    return {
        "layers": list(candidate.layers),
        "form": form.kind,
        "regularisation": form.regularisation,
        "n_components": form.n_components,
        "n_hidden": form.n_hidden,
    }


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
    own = [pair for pair in zip(answers, scores, strict=True) if pair[0].kind == "own"]
    alone: dict[str, float] = {}
    for answer, row in zip(answers, scores, strict=True):
        if answer.carrier in ("text", "wrapped"):
            name = answer.request.id
            # Here and below not max(), which may drop a NaN.
            alone[name] = float(np.maximum(row[0], alone.get(name, 0.0)))
    own = [(answer, _with_words_alone(answer, row, alone)) for answer, row in own]

    def rows(label: Label) -> list[NDArray[np.float64]]:
        return [row for answer, row in own if answer.request.label == label]

    return AnswerScores(
        ordinary=rows("ordinary"),
        borderline=rows("borderline"),
        harmless_twins=rows("harmless"),
        harmful=[row for answer, row in own if answer.label == 1],
    )


def _with_words_alone(
    answer: HarvestedAnswer, row: NDArray[np.float64], alone: Mapping[str, float]
) -> NDArray[np.float64]:
    """The scores with the prompt's as the session has it: where there is a picture, the highest of
    the prompt's and of what is said and written (`turn.text_only_conversations`), whether or not a
    user's guard reads pictures."""
    if answer.carrier not in ("beside", *DRAWN_CARRIERS) or answer.request.id not in alone:
        return row
    return np.concatenate([[np.maximum(row[0], alone[answer.request.id])], row[1:]])


def _means(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array([row[1:].mean() for row in rows])


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, _DIGITS) for key, value in row.items()}
