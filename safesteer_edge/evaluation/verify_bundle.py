"""A guard bundle checked against its model and its sources: what `safesteer-edge verify` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle, read_config
from safesteer_edge.bundle.fingerprint import Match, compare, fingerprint_model
from safesteer_edge.calibration.harvest_run import Progress
from safesteer_edge.engine.native import native_facts
from safesteer_edge.errors import (
    BundleError,
    EngineError,
    GuardError,
    ProbeFileError,
    VectorFileError,
)
from safesteer_edge.evaluation.drift import Drift
from safesteer_edge.evaluation.verify_drift import DriftSettings, verify_drift
from safesteer_edge.evaluation.verify_probe import (
    MAX_SCORE_DIFFERENCE,
    ProbeParity,
    Scorer,
    compare_probe,
    open_probe_again,
    random_states,
    read_source,
    read_states,
)
from safesteer_edge.evaluation.verify_vector import LayerShift, measure_shifts
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.runtime import open_runtime
from safesteer_edge.settings import SessionSettings

_N_CTX = 512
_PROMPT = "What is shown in this picture, and is it safe?"

Device = Literal["CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to compare a bundle with.

    source: what the probe was converted from; is_flipped: its score falls with harm. states: a
    file of states to compare on; None: random ones. max_score_difference: above it, the probe is
    not its source. n_gpu_layers: for the run on the GPU; None: all. replay: ask the fixed requests
    and compare; None: only where the model is in another quantization than the bundle's.
    n_requests, reference, record: see DriftSettings.
    """

    model: Path
    source: Path | None = None
    is_flipped: bool = False
    states: Path | None = None
    max_score_difference: float = MAX_SCORE_DIFFERENCE
    n_gpu_layers: int | None = None
    n_threads: int | None = None
    allow_negative_scale: bool = False
    replay: bool | None = None
    n_requests: int | None = None
    reference: Path | None = None
    record: bool = False


@dataclass(frozen=True, slots=True)
class VectorRun:
    """The shifts that the bundle's directions made, with the model on one device."""

    device: Device
    layers: tuple[LayerShift, ...]


@dataclass(slots=True)
class VerifyReport:
    """What was measured. failures: one line for each thing that is not as it should be."""

    bundle: str
    model: str
    quantization: str
    match: str = ""
    n_engine_canaries: int = 0
    is_calibrated: bool | None = None  # None: it does not load
    probe: list[ProbeParity] = field(default_factory=list)
    vector: list[VectorRun] = field(default_factory=list)
    drift: Drift | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return plain values, `passed` among them."""
        return {**asdict(self), "passed": self.passed}


def verify_bundle(
    folder: Path, settings: VerifySettings, progress: Progress = lambda *_: None
) -> VerifyReport:
    """Load a bundle with all its checks, and measure its probe, its vector and its scores' drift.

    The vector runs on the CPU, and on the GPU where llama.cpp has one; the probe likewise.
    Raises InputError for files that cannot be read at all, BundleError for another model,
    EngineError if the model does not run. What was read and is wrong is in the report's `failures`.
    """
    config = read_config(folder)
    info = check_language_model(settings.model)
    match = compare(config.model, fingerprint_model(info))
    report = VerifyReport(config.name, info.path.name, info.quantization)
    with ExitStack() as owned:
        try:
            runtime = open_runtime(_session(settings, "CPU", bundle=folder))
        except (BundleError, ProbeFileError, VectorFileError) as error:
            report.failures.append(f"the bundle does not load: {error}")
            return report
        bundle = runtime.bundle
        assert bundle is not None  # only `guard="off"` opens none
        owned.callback(runtime.close)
        report.match, report.n_engine_canaries = bundle.match, len(config.canaries.engine)
        report.is_calibrated = bundle.is_calibrated
        report.notes.extend(bundle.warnings)
        _verify_probe(report, bundle, settings)
        vector = bundle.control_vector
    if vector is None:
        report.notes.append("the bundle has no vector")
    else:
        for device in _devices():
            _verify_vector(report, vector, settings, device)
    if _is_replayed(settings, match):
        _verify_drift(report, folder, info, settings, progress)
    return report


def _is_replayed(settings: VerifySettings, match: Match) -> bool:
    if settings.replay is None:
        return settings.record or match != "exact"
    return settings.replay


def _verify_drift(
    report: VerifyReport,
    folder: Path,
    info: ModelInfo,
    settings: VerifySettings,
    progress: Progress,
) -> None:
    session = SessionSettings(
        guard="off", n_ctx=_N_CTX, n_gpu_layers=settings.n_gpu_layers, n_threads=settings.n_threads
    )
    wanted = DriftSettings(session, settings.n_requests, settings.reference, settings.record)
    drift = report.drift = verify_drift(folder, info, wanted, progress)
    if drift.reference is None:
        report.notes.append(
            "what the guard did in the bundle's own quantization is not known: pass a file of that "
            "with --reference"
        )
    report.failures.extend(drift.reasons)


def _verify_probe(report: VerifyReport, bundle: GuardBundle, settings: VerifySettings) -> None:
    n_features = bundle.config.probe.n_features
    states = (
        random_states(bundle)
        if settings.states is None
        else read_states(settings.states, n_features)
    )
    if settings.source is None:
        report.notes.append("the probe was compared with no source: pass it with --source")
        return
    source = read_source(settings.source, n_features, is_flipped=settings.is_flipped)
    _compare(report, bundle, source, states, settings, "cpu")
    _compare(report, bundle, source, states, settings, "cuda")


def _compare(
    report: VerifyReport,
    bundle: GuardBundle,
    source: Scorer,
    states: NDArray[np.float32],
    settings: VerifySettings,
    device: Literal["cpu", "cuda"],
) -> None:
    try:
        probe = open_probe_again(bundle, device)
    except GuardError:
        if device == "cpu":
            raise
        return  # no CUDA here
    with probe:
        parity = compare_probe(probe, source, states)
    report.probe.append(parity)
    # Written so that a NaN fails.
    if not parity.max_difference <= settings.max_score_difference:
        report.failures.append(
            f"on {parity.provider}, a score is {parity.max_difference:.3g} from the source's; "
            f"expected at most {settings.max_score_difference:g}: convert the probe again"
        )


def _verify_vector(
    report: VerifyReport, vector: ControlVector, settings: VerifySettings, device: Device
) -> None:
    n_layer = vector.n_layer
    runtime = open_runtime(_session(settings, device), layers=range(n_layer))
    try:
        token_ids = runtime.model.tokenize_plain(_PROMPT)
        shifts = measure_shifts(runtime, vector, token_ids)
    except EngineError as error:
        report.failures.append(f"on the {device}, the vector could not be measured: {error}")
        return
    finally:
        runtime.close()
    report.vector.append(VectorRun(device, tuple(shifts)))
    report.failures.extend(_shift_failures(shifts, device))


def _shift_failures(shifts: Sequence[LayerShift], device: Device) -> list[str]:
    where: Callable[[LayerShift], str] = lambda shift: (  # noqa: E731
        "nowhere" if shift.landed_on is None else f"first at block {shift.landed_on}"
    )
    return [
        f"on the {device}, the direction of block {shift.layer_index} shows up {where(shift)}, "
        f"with a relative error of {shift.relative_error:.3g}"
        for shift in shifts
        if not shift.is_as_stored
    ]


def _devices() -> tuple[Device, ...]:
    return ("CPU", "GPU") if native_facts().supports_gpu_offload else ("CPU",)


def _session(
    settings: VerifySettings, device: Device, *, bundle: Path | None = None
) -> SessionSettings:
    return SessionSettings(
        model=str(settings.model),
        bundle=bundle,
        guard="off" if bundle is None else "monitor",
        n_ctx=_N_CTX,
        n_gpu_layers=0 if device == "CPU" else settings.n_gpu_layers,
        n_threads=settings.n_threads,
        probe_device="cpu",
        allow_negative_scale=settings.allow_negative_scale,
    )
