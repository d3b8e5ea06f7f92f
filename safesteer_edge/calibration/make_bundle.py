"""From a model and requests to a guard bundle: harvest, fit, choose, write.

Everything is decided on the train and calibration splits; the test split is never read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge import __version__
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.writer import BundleParts, write_bundle
from safesteer_edge.calibration.cost import CostMeter
from safesteer_edge.calibration.harvest import HarvestedAnswer, HarvestPlan
from safesteer_edge.calibration.harvest_cache import DEFAULT_LIMIT_BYTES
from safesteer_edge.calibration.harvest_run import Harvest, HarvestSettings, Progress, harvest
from safesteer_edge.calibration.measured_parts import (
    ScoreStates,
    make_canaries,
    residual_norms,
)
from safesteer_edge.calibration.policy_fit import (
    AnswerScores,
    FalseAlarmTargets,
    PolicyChoice,
    choose_policy,
)
from safesteer_edge.calibration.probe_fit import (
    FitSettings,
    FittedProbe,
    fit_probe,
)
from safesteer_edge.calibration.probe_forms import ProbeForm
from safesteer_edge.calibration.requests_data import Label, Request
from safesteer_edge.calibration.separation import separation_by_layer
from safesteer_edge.calibration.vector_candidates import VectorSettings
from safesteer_edge.calibration.vector_stage import VectorResult, VectorTask, fit_vector
from safesteer_edge.evaluation.statistics import auroc
from safesteer_edge.runtime import open_runtime
from safesteer_edge.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """layer_sets: sets of layers to try, each joined in its order. regularisations: C to try.

    session: its guard is left off. hears: recordings are played to the model. cache: of harvested
    states, None is the user's; cache_limit_bytes: what it may hold.
    """

    session: SessionSettings
    layer_sets: tuple[tuple[int, ...], ...]
    regularisations: tuple[float, ...]
    plan: HarvestPlan
    targets: FalseAlarmTargets
    refusal_text: str
    name: str
    hears: bool = False
    cache: Path | None = None
    cache_limit_bytes: int = DEFAULT_LIMIT_BYTES
    vector: VectorSettings = field(default_factory=VectorSettings)

    @property
    def harvest(self) -> HarvestSettings:
        """What is harvested, and where it is kept."""
        return HarvestSettings(
            session=replace(self.session, guard="off"),
            plan=self.plan,
            tail_layers=self.all_layers,
            hears=self.hears,
            cache=self.cache,
            limit_bytes=self.cache_limit_bytes,
        )

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every layer of any set, ascending: what a probe may read."""
        return tuple(sorted({layer for layers in self.layer_sets for layer in layers}))


@dataclass(frozen=True, slots=True)
class _Fit:
    layers: tuple[int, ...]
    regularisation: float
    probe: FittedProbe
    choice: PolicyChoice
    auroc: float


def make_bundle(
    folder: Path, settings: CalibrationSettings, requests: Sequence[Request], progress: Progress
) -> Path:
    """Calibrate and write a guard bundle; returns its folder.

    progress(what, n_done, n_total). Cost for the embedded default: about 90,000 decoding steps
    and some fits. Raises SafeSteerError for what cannot be loaded, fitted or written.
    """
    cost = CostMeter()
    harvested = harvest_requests(settings, requests, progress)
    return bundle_from_harvest(folder, settings, requests, harvested, progress, cost)


def harvest_requests(
    settings: CalibrationSettings, requests: Sequence[Request], progress: Progress
) -> Harvest:
    """Answers to the requests, in every carrier, with their states in the cache."""
    if any(request.split == "test" for request in requests):
        raise ValueError("test requests must not be calibrated on")
    return harvest(settings.harvest, requests, progress)


def bundle_from_harvest(
    folder: Path,
    settings: CalibrationSettings,
    requests: Sequence[Request],
    harvested: Harvest,
    progress: Progress,
    cost: CostMeter | None = None,
) -> Path:
    """Fit, choose and write, from what was harvested with these settings."""
    cost = cost or CostMeter()
    session = settings.harvest.session
    fits = list(_fits(harvested, settings, progress))
    best = max(fits, key=lambda fit: (fit.choice.refused.harmful, fit.auroc))
    chosen = harvested.answers(best.layers, kinds=("own",))
    runtime = open_runtime(session, layers=best.layers)
    try:
        canaries = make_canaries(runtime, best.probe.scores, chosen, requests)
    finally:
        runtime.close()
    norms = residual_norms(session, requests)
    vector = _vector(harvested, settings, best, norms, runtime.info.architecture, progress)
    calibration = {
        "harvested": _harvested_counts(harvested),
        "separation": separation_by_layer(harvested, progress),
        "vector": vector.record,
        # The one field, beside the date, that differs between two runs on the same files.
        "made": cost.to_json(),
    }
    parts = BundleParts(
        name=settings.name,
        created_by=f"safesteer-edge {__version__}",
        model=fingerprint_model(runtime.info),
        probe_onnx=best.probe.to_onnx(),
        probe_layers=best.layers,
        policy=best.choice.policy,
        residual_norms=norms,
        canaries=canaries,
        refusal_text=settings.refusal_text,
        route_hint=runtime.route.name if runtime.route else None,
        vector=vector.parts,
        figures={**_figures(fits, best, settings), "calibration": calibration},
    )
    return write_bundle(folder, parts)


def _fits(harvested: Harvest, settings: CalibrationSettings, progress: Progress) -> Iterator[_Fit]:
    n_total = len(settings.layer_sets) * len(settings.regularisations)
    n_done = 0
    for layers in settings.layer_sets:
        answers = harvested.answers(layers)
        for regularisation in settings.regularisations:
            probe, scores = fit_probe(answers, FitSettings(ProbeForm("linear", regularisation)))
            by_request = _by_request(answers, scores)
            choice = choose_policy(by_request, settings.targets)
            separation = auroc(_means(by_request.harmful), _means(by_request.ordinary))
            n_done += 1
            progress("fitting probes", n_done, n_total)
            yield _Fit(layers, regularisation, probe, choice, separation)


def _vector(
    harvested: Harvest,
    settings: CalibrationSettings,
    best: _Fit,
    norms: Sequence[float],
    architecture: str,
    progress: Progress,
) -> VectorResult:
    """The alignment vector, judged by the chosen kind of probe."""

    def fit(answers: Sequence[HarvestedAnswer]) -> ScoreStates:
        return fit_probe(answers, FitSettings(ProbeForm("linear", best.regularisation)))[0].scores

    task = VectorTask(
        session=settings.harvest.session,
        probe_layers=best.layers,
        fit=fit,
        residual_norms=norms,
        architecture=architecture,
        settings=settings.vector,
    )
    return fit_vector(harvested, task, progress)


def _harvested_counts(harvested: Harvest) -> dict[str, dict[str, int]]:
    """Requests by carrier and label."""
    counts: dict[str, dict[str, int]] = {}
    for unit in harvested.units:
        row = counts.setdefault(unit.carrier, {})
        row[unit.request.label] = row.get(unit.request.label, 0) + 1
    return {carrier: dict(sorted(row.items())) for carrier, row in sorted(counts.items())}


def _by_request(
    answers: Sequence[HarvestedAnswer], scores: Sequence[NDArray[np.float64]]
) -> AnswerScores:
    own = [pair for pair in zip(answers, scores, strict=True) if pair[0].kind == "own"]

    def rows(label: Label) -> list[NDArray[np.float64]]:
        return [row for answer, row in own if answer.request.label == label]

    return AnswerScores(
        ordinary=rows("ordinary"),
        borderline=rows("borderline"),
        harmless_twins=rows("harmless"),
        harmful=[row for answer, row in own if answer.label == 1],
    )


def _means(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array([row.mean() for row in rows])


def _figures(fits: Sequence[_Fit], best: _Fit, settings: CalibrationSettings) -> dict[str, object]:
    return {
        "splits": ["train", "calibration"],
        "out_of_fold": {
            "auroc_mean_score_harmful_against_ordinary": round(best.auroc, 4),
            "refused": _rounded(asdict(best.choice.refused)),
        },
        "targets": asdict(settings.targets),
        "regularisation": best.regularisation,
        "score_calibration": best.probe.calibration.to_json(),
        "tried": [
            {
                "layers": list(fit.layers),
                "regularisation": fit.regularisation,
                "auroc": round(fit.auroc, 4),
                "refused": _rounded(asdict(fit.choice.refused)),
            }
            for fit in fits
        ],
        "risk_settings": [_rounded(row) for row in best.choice.curve],
    }


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in row.items()}
