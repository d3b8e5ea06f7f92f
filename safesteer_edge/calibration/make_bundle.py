"""From a model and requests to a guard bundle: harvest, fit, choose, write.

Everything is decided on the train and calibration splits. Test requests, if any are given, are
answered once all is decided, so that `verify` can tell later what another quantization changes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.writer import BundleParts, write_bundle
from safesteer_edge.calibration.measured_parts import make_canaries, residual_norms
from safesteer_edge.calibration.probe_choice import ProbeResult, fit_chosen_probe, probe_candidates
from safesteer_edge.calibration.probe_fit import FitSettings, fit_calibrated
from safesteer_edge.calibration.report import bundle_report
from safesteer_edge.calibration.separation import reading_of_media, separation_by_layer
from safesteer_edge.calibration.vector_fit import VectorSettings
from safesteer_edge.calibration.vector_stage import VectorResult, VectorTask, fit_vector
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.formats.version import VERSION
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.harvest.answers import HarvestedAnswer, HarvestPlan
from safesteer_edge.harvest.cache import DEFAULT_LIMIT_BYTES, HarvestSettings
from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    FalseAlarmTargets,
    replay_of,
    replay_to_json,
    score_own_answers,
)
from safesteer_edge.harvest.run import Harvest, Progress, harvest
from safesteer_edge.harvest.vector_trial import ScoreStates
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

# -- what a calibration took: seconds, and the most memory at once ---------------------------------


@dataclass(frozen=True, slots=True)
class CostMeter:
    """Started when it is made."""

    started_s: float = field(default_factory=time.monotonic)

    def to_json(self) -> dict[str, float | None]:
        """{"elapsed_s", "peak_memory_mib"}; the latter None where the system does not say."""
        return {
            "elapsed_s": round(time.monotonic() - self.started_s, 1),
            "peak_memory_mib": _peak_memory_mib(),
        }


def _peak_memory_mib() -> float | None:
    """Of this process since it began."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(peak * unit / (1 << 20), 1)


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """layer_sets: sets of layers to try, each joined in its order. regularisations: C to try.

    session: its guard is left off. hears: recordings are played to the model. cache: of harvested
    states, None is the user's; cache_limit_bytes: what it may hold. n_workers: see HarvestSettings.
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
    n_workers: int = 1
    vector: VectorSettings = field(default_factory=VectorSettings)
    replayed: tuple[Request, ...] = ()

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
            n_workers=self.n_workers,
        )

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Every layer of any set, ascending: what a probe may read."""
        return tuple(sorted({layer for layers in self.layer_sets for layer in layers}))


def make_bundle(
    folder: Path, settings: CalibrationSettings, requests: Sequence[Request], progress: Progress
) -> Path:
    """Calibrate and write a guard bundle; returns its folder.

    progress(what, n_done, n_total). Cost for the embedded default: about 100,000 decoding steps
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
    candidates = probe_candidates(settings.layer_sets, settings.regularisations)
    reading = reading_of_media(harvested, settings.all_layers)
    taught = harvested if reading.get("understood") else harvested.without_drawn()
    best = fit_chosen_probe(taught, candidates, settings.targets, progress)
    layers = best.candidate.layers
    probe_onnx = best.probe.to_onnx()
    with closing(open_runtime(session, layers=layers)) as runtime:
        # Not kept: the vector's fit needs the room.
        canaries = make_canaries(
            runtime, best.probe.scores, harvested.answers(layers, kinds=("own",)), requests
        )
        replay = _replay(runtime, probe_onnx, best.policy.policy, settings.replayed, progress)
    norms = residual_norms(session, requests)
    vector = _vector(harvested, taught, settings, best, norms, runtime.info.architecture, progress)
    calibration = {
        "harvested": _harvested_counts(harvested),
        "separation": separation_by_layer(harvested, progress),
        "reading": reading,
        "vector": vector.record,
        "policy": best.policy.to_json(),
        # The one field, beside the date, that differs between two runs on the same files.
        "made": cost.to_json(),
    }
    parts = BundleParts(
        name=settings.name,
        created_by=f"safesteer-edge {VERSION}",
        model=fingerprint_model(runtime.info),
        probe_onnx=probe_onnx,
        probe_layers=layers,
        policy=best.policy.policy,
        residual_norms=norms,
        canaries=canaries,
        refusal_text=settings.refusal_text,
        route_hint=runtime.route.name if runtime.route else None,
        vector=vector.parts,
        figures=without_nan({**best.record, "calibration": calibration, **replay}),
    )
    return write_bundle(folder, replace(parts, reports=bundle_report(parts)))


def _vector(
    harvested: Harvest,
    taught: Harvest,
    settings: CalibrationSettings,
    best: ProbeResult,
    norms: Sequence[float],
    architecture: str,
    progress: Progress,
) -> VectorResult:
    """The alignment vector, judged by the chosen kind of probe, taught by the same carriers."""
    carriers = {unit.carrier for unit in taught.units}

    def fit(answers: Sequence[HarvestedAnswer]) -> ScoreStates:
        answers = [answer for answer in answers if answer.carrier in carriers]
        form = FitSettings(best.candidate.form)
        return fit_calibrated(answers, form, best.probe.calibration).scores

    task = VectorTask(
        session=settings.harvest.session,
        probe_layers=best.candidate.layers,
        fit=fit,
        residual_norms=norms,
        architecture=architecture,
        settings=settings.vector,
    )
    return fit_vector(harvested, task, progress)


def _replay(
    runtime: Runtime,
    probe_onnx: bytes,
    policy: GuardPolicy,
    requests: Sequence[Request],
    progress: Progress,
) -> dict[str, Any]:
    """What the finished guard makes of these requests, for the bundle's figures."""
    if not requests:
        return {}
    with OnnxProbe.from_bytes(probe_onnx, name="the new probe", device="cpu") as probe:
        answers = score_own_answers(runtime, probe, requests, progress, what="recording a replay")
    replay = replay_of(answers, requests, policy, runtime.info.quantization)
    return {FIGURES_KEY: replay_to_json(replay)}


def _harvested_counts(harvested: Harvest) -> dict[str, dict[str, int]]:
    """Requests by carrier and label."""
    counts: dict[str, dict[str, int]] = {}
    for unit in harvested.units:
        row = counts.setdefault(unit.carrier, {})
        row[unit.request.label] = row.get(unit.request.label, 0) + 1
    return {carrier: dict(sorted(row.items())) for carrier, row in sorted(counts.items())}
