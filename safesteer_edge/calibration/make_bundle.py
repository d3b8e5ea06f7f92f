"""From a model and requests to a guard bundle: harvest, fit, choose, write.

Everything is decided on the train and calibration splits. Test requests, if any are given, are
answered once all is decided, so that `verify` can tell later what another quantization changes.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import Canaries, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.writer import BundleParts, write_bundle
from safesteer_edge.calibration.probe_choice import ProbeResult, fit_chosen_probe, probe_candidates
from safesteer_edge.calibration.probe_fit import MAX_ROWS, FitSettings, fit_calibrated
from safesteer_edge.calibration.prompt_fit import (
    planned_readings,
    reading_requests,
    reading_settings,
)
from safesteer_edge.calibration.report import bundle_report
from safesteer_edge.calibration.separation import reading_of_media, separation_by_layer
from safesteer_edge.calibration.settings import CalibrationSettings, scaled
from safesteer_edge.calibration.steering_fit import (
    LookAheadFit,
    choose_openings,
    fit_look_ahead,
)
from safesteer_edge.calibration.vector_stage import VectorResult, VectorTask, fit_vector
from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.version import VERSION
from safesteer_edge.harvest.answers import HarvestedAnswer, Piece, open_many, question_ids
from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    N_TOKENS,
    replay_of,
    replay_to_json,
    score_own_answers,
)
from safesteer_edge.harvest.run import Harvest, Progress, Trial, counted, harvest, try_harvest
from safesteer_edge.harvest.units import planned_requests
from safesteer_edge.harvest.vector_trial import ScoreStates
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings

N_PROBE_CANARIES: Final = 8
N_ENGINE_CANARIES: Final = 2
N_NORM_REQUESTS: Final = 16
# Fits of as many rows as there are at most, beside the prompts, and the steps of one: what each
# does with all rows, and what is reckoned beside them.
_N_FITS: Final = 19
_N_FITS_OF_ALL_FORMS: Final = 60
_N_STEPS: Final = 300
_N_TRIED_ROWS: Final = 2000
_N_TRIED_STEPS: Final = 10
# Own answers that `choose_openings` costs, by their tokens: 530 and 760 on two models; and
# `fit_look_ahead`, by its passes.
_N_OPENING_ANSWERS: Final = 640 + 120


def make_bundle(
    folder: Path, settings: CalibrationSettings, requests: Sequence[Request], progress: Progress
) -> Path:
    """Calibrate and write a guard bundle; returns its folder.

    progress(what, n_done, n_total). Cost: see `settings.EFFORTS` and `estimated_s`.
    Raises SafeSteerError for what cannot be loaded, fitted or written.
    """
    started_s = time.monotonic()
    harvested = harvest_requests(settings, requests, progress)
    return bundle_from_harvest(folder, settings, requests, harvested, progress, started_s)


def estimated_s(settings: CalibrationSettings, requests: Sequence[Request]) -> float:
    """How long `make_bundle` will take, by a trial on this machine whose results it goes on with.

    Takes some 10 seconds for a small model, 40 for one of 1.5 billion weights.
    Raises what `make_bundle` raises.
    """
    trial = try_harvest(settings.harvest, requests)
    return _reckoned_s(settings, requests, trial, trial.n_missing)


def within_minutes(
    settings: CalibrationSettings, requests: Sequence[Request], minutes: float
) -> CalibrationSettings:
    """The same, reading as many requests as so many minutes pay for where none is read yet.

    Raises SettingsError for too few minutes, and what `make_bundle` raises.
    """
    shares = [share / 20 for share in range(8, 41)]  # of what the effort reads
    trial = try_harvest(scaled(settings, shares[0]).harvest, requests)

    def cost_s(share: float) -> float:
        cut = scaled(settings, share)
        _, units = planned_requests(cut.harvest, requests)
        return _reckoned_s(cut, requests, trial, counted(units, cut.harvest.plan))

    n_paid = bisect.bisect_right(shares, 60 * minutes, key=cost_s)
    if n_paid == 0:
        least = math.ceil(cost_s(shares[0]) / 60)
        raise SettingsError(
            f"--minutes is {minutes:g}; the fewest requests that a guard can be made from take "
            f"about {least} min on this machine: give at least {least}"
        )
    cut = scaled(settings, shares[n_paid - 1])
    not_tried = (f"what {minutes:g} minutes did not pay for", *settings.effort.not_tried[1:])
    return replace(cut, effort=replace(settings.effort, not_tried=not_tried))


def _reckoned_s(
    settings: CalibrationSettings,
    requests: Sequence[Request],
    trial: Trial,
    counts: Mapping[Piece, int],
) -> float:
    """counts: of units that are to be harvested."""
    _, units = planned_requests(settings.harvest, requests)
    n_readings = len(reading_requests(planned_readings(units)))
    n_answers = len(settings.replayed) * N_TOKENS / settings.harvest.plan.n_own_tokens
    n_answers += _N_OPENING_ANSWERS
    harvest_s = sum(n * trial.each_s[piece] for piece, n in counts.items() if n)
    prompt_s = trial.each_s.get("known", trial.each_s.get("whole", 0.0))
    later_s = n_readings * prompt_s + n_answers * trial.each_s.get("own", 0.0)
    return harvest_s + later_s + _fits_s(settings)


def _fits_s(settings: CalibrationSettings) -> float:
    """Of the probes, reckoned from their number and size, and from how long a step of one takes."""
    info = check_language_model(choose_model(settings.harvest.session.model).path)
    n_features = info.n_embd * max(len(layers) for layers in settings.layer_sets)
    effort = settings.effort
    n_fits = _N_FITS if effort.only_linear else _N_FITS_OF_ALL_FORMS
    rows = np.ones((_N_TRIED_ROWS, n_features), dtype=np.float32)
    weights = np.ones(n_features, dtype=np.float32)
    started_s = time.monotonic()
    for _ in range(_N_TRIED_STEPS):
        rows.T.dot(rows.dot(weights))
    row_s = (time.monotonic() - started_s) / (_N_TRIED_ROWS * _N_TRIED_STEPS)
    return n_fits * (effort.max_rows or MAX_ROWS) * _N_STEPS * row_s


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
    started_s: float | None = None,
) -> Path:
    """Fit, choose and write, from what was harvested with these settings.

    started_s: when the calibration began, on the monotonic clock; None: now.
    """
    started_s = time.monotonic() if started_s is None else started_s
    session = replace(settings.harvest.session, guard="off")
    effort = settings.effort
    candidates = probe_candidates(
        settings.layer_sets, settings.regularisations, only_linear=effort.only_linear
    )
    reading = reading_of_media(harvested, settings.harvest.tail_layers)
    taught = harvested if reading.get("understood") else harvested.without_drawn()
    readings = planned_readings(harvested.units)
    read = harvest(
        reading_settings(settings.harvest),
        reading_requests(readings),
        lambda _, n_done, n_total: progress("reading them in parts", n_done, n_total),
    )
    best = fit_chosen_probe(
        taught,
        candidates,
        settings.targets,
        progress,
        is_nested=effort.is_nested,
        max_rows=effort.max_rows,
        readings=readings,
        read=read,
    )
    layers = best.candidate.layers
    probe_onnx = best.probe.to_onnx()
    own = harvested.answers(layers, kinds=("own",))
    last_states = np.stack([answer.states[-1] for answer in own])
    del own
    _give_back_memory()  # the model is loaded next
    with closing(open_runtime(session, layers=layers)) as runtime:
        canaries = _canaries(runtime, best.probe.scores, last_states, requests)
        replay = _replay(runtime, probe_onnx, best, settings, progress)
        ahead = _look_ahead(runtime, probe_onnx, requests, progress)
    choice = replace(best.policy, policy=ahead.applied_to(best.policy.policy))
    opened = choose_openings(session, requests, progress)
    norms = _residual_norms(session, runtime.info.n_layer, requests)
    architecture = runtime.info.architecture
    if effort.tries_vector:
        vector = _vector(harvested, taught, settings, best, norms, architecture, progress)
    else:
        why = f"a calibration of effort {effort.name} tries none"
        vector = VectorResult(None, {"enabled": False, "why": why})
    # The states of single layers are of no use to a quick one, and reading them takes its time.
    compared = None if effort.is_nested else settings.harvest.tail_layers
    calibration = {
        "effort": {"name": effort.name, "not_tried": effort.not_tried},
        "harvested": _harvested_counts(harvested),
        "separation": separation_by_layer(harvested, progress, compared),
        "reading": reading,
        "vector": vector.record,
        "policy": choice.to_json(),
        "openings": opened.trial,
        "look_ahead": ahead.to_json(),
        # The one field, beside the date, that differs between two runs on the same files.
        "made": {
            "elapsed_s": round(time.monotonic() - started_s, 1),
            "peak_memory_mib": _peak_memory_mib(),
        },
    }
    parts = BundleParts(
        name=settings.name,
        created_by=f"safesteer-edge {VERSION}",
        model=fingerprint_model(runtime.info),
        probe_onnx=probe_onnx,
        probe_layers=layers,
        policy=choice.policy,
        residual_norms=norms,
        canaries=canaries,
        refusal_text=settings.refusal_text,
        route_hint=runtime.route.name if runtime.route else None,
        vector=vector.parts,
        openings=opened.openings,
        opening_tokens=opened.opening_tokens,
        prompt_probe_onnx=best.prompt_probe.to_onnx(),
        prompt_reads_message=True,
        readings=best.readings,
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
        session=replace(settings.harvest.session, guard="off"),
        probe_layers=best.candidate.layers,
        fit=fit,
        residual_norms=norms,
        architecture=architecture,
        settings=settings.vector,
    )
    return fit_vector(harvested, task, progress)


def _look_ahead(
    runtime: Runtime, probe_onnx: bytes, requests: Sequence[Request], progress: Progress
) -> LookAheadFit:
    with OnnxProbe.from_bytes(probe_onnx, name="the new probe", device="cpu") as probe:
        return fit_look_ahead(runtime, probe, requests, progress)


def _replay(
    runtime: Runtime,
    probe_onnx: bytes,
    best: ProbeResult,
    settings: CalibrationSettings,
    progress: Progress,
) -> dict[str, Any]:
    """What the finished guard makes of the replayed requests, for the bundle's figures."""
    requests, harvest = settings.replayed, settings.harvest
    if not requests:
        return {}
    with ExitStack() as undo:
        probe = undo.enter_context(
            OnnxProbe.from_bytes(probe_onnx, name="the new probe", device="cpu")
        )
        many = None
        if harvest.plan.in_batches and not runtime.model.has_recurrent_state:
            layers = best.candidate.layers
            many = undo.enter_context(closing(open_many(runtime, harvest.session, layers)))
        prompt_onnx = best.prompt_probe.to_onnx()
        prompt_probe = undo.enter_context(
            OnnxProbe.from_bytes(prompt_onnx, name="the new prompt probe", device="cpu")
        )
        answers = score_own_answers(
            runtime,
            probe,
            requests,
            progress,
            what="recording a replay",
            many=many,
            prompt_probe=prompt_probe,
        )
    replay = replay_of(answers, requests, best.policy.policy, runtime.info.quantization)
    return {FIGURES_KEY: replay_to_json(replay)}


def _harvested_counts(harvested: Harvest) -> dict[str, dict[str, int]]:
    """Requests by carrier and label."""
    counts: dict[str, dict[str, int]] = {}
    for unit in harvested.units:
        if unit.piece == "own":  # its request is read as well
            continue
        row = counts.setdefault(unit.carrier, {})
        row[unit.request.label] = row.get(unit.request.label, 0) + 1
    return {carrier: dict(sorted(row.items())) for carrier, row in sorted(counts.items())}


def _give_back_memory() -> None:
    """Hand freed memory back to the system: of a fit's many arrays glibc keeps 0.5 GiB."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _peak_memory_mib() -> float | None:
    """The most memory of this process at once since it began; None where the system is silent."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(peak * unit / (1 << 20), 1)


# -- what a bundle records of the model itself: self-tests, and the residual stream's norms --------


def _canaries(
    runtime: Runtime,
    score: ScoreStates,
    states: NDArray[np.floating],
    requests: Sequence[Request],
) -> Canaries:
    """States that span the range of scores, and prompts whose state the engine must give again.

    states: of the model's own answers, of the layers that `score` and the runtime read.
    """
    order = np.argsort(score(states.astype(np.float64)), kind="stable")
    picked = order[np.linspace(0, len(order) - 1, N_PROBE_CANARIES).astype(int)]
    ordinary = [r for r in requests if r.label == "ordinary" and r.image is None]
    engine: list[EngineCanary] = []
    for request in ordinary[:N_ENGINE_CANARIES]:
        token_ids = question_ids(runtime, request.text)
        state = last_state_of(runtime.engine, runtime.model, token_ids)
        engine.append(EngineCanary(*_scored(state, score), token_ids=token_ids))
    probe = tuple(ProbeCanary(*_scored(states[index], score)) for index in picked)
    return Canaries(probe, tuple(engine))


def _scored(state: NDArray[np.floating], score: ScoreStates) -> tuple[bytes, float]:
    wide = state.astype("<f4")
    return wide.tobytes(), float(score(wide[np.newaxis, :].astype(np.float64))[0])


def _residual_norms(
    session: SessionSettings, n_layer: int, requests: Sequence[Request]
) -> tuple[float, ...]:
    """Mean L2 norm of every block's output at the last prompt position, over a few requests."""
    with closing(open_runtime(session, layers=range(n_layer))) as runtime:
        norms: list[NDArray[np.float32]] = []
        for request in requests[:: max(1, len(requests) // N_NORM_REQUESTS)]:
            token_ids = question_ids(runtime, request.text)
            state = last_state_of(runtime.engine, runtime.model, token_ids)
            norms.append(np.linalg.norm(state.reshape(n_layer, -1), axis=1))
    return tuple(float(norm) for norm in np.mean(norms, axis=0))
