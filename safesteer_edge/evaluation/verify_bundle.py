"""A guard bundle checked against its model and its sources: what `safesteer-edge verify` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle, read_config
from safesteer_edge.bundle.fingerprint import Match, compare, fingerprint_model
from safesteer_edge.engine.native import native_facts
from safesteer_edge.errors import (
    BundleError,
    EngineError,
    GuardError,
    ProbeFileError,
    VectorFileError,
)
from safesteer_edge.evaluation.verify_drift import DriftSettings, verify_drift
from safesteer_edge.evaluation.verify_vector import LayerShift, measure_shifts
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.harvest.drift import Drift
from safesteer_edge.harvest.run import Progress
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.probe.sessions import Device
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.settings import SessionSettings

# -- whether a bundle's probe still is the probe that it was made from: scores side by side --------
# The source computes its scores itself (scikit-learn, another ONNX graph) or in NumPy and
# float64; the converted probe runs in ONNX Runtime, as it does while the guard decodes.

N_RANDOM_STATES: Final = 256
MAX_SCORE_DIFFERENCE: Final = 1e-5

Scorer = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class ProbeParity:
    """How far two scorers differ over the same states. provider: where the bundle's probe ran."""

    provider: str
    n_states: int
    max_difference: float
    least_score: float
    largest_score: float


def compare_probe(probe: OnnxProbe, source: Scorer, states: NDArray[np.float32]) -> ProbeParity:
    """Score the states twice and compare. Raises GuardError for scores that are no scores."""
    scores = probe.score(states).astype(np.float64)
    return ProbeParity(
        provider=probe.provider,
        n_states=len(states),
        max_difference=float(np.abs(scores - source(states)).max()),
        least_score=float(scores.min()),
        largest_score=float(scores.max()),
    )


def random_states(bundle: GuardBundle, *, seed: int = 0) -> NDArray[np.float32]:
    """Return states like the model's own: random mixtures of the bundle's stored ones, and noise.

    Float32 (N_RANDOM_STATES, n_features). Pure noise would leave most probes saturated.
    """
    rng = np.random.default_rng(seed)
    canaries = (*bundle.config.canaries.probe, *bundle.config.canaries.engine)
    stored = np.stack([canary.state() for canary in canaries]).astype(np.float64)
    mixtures = rng.dirichlet(np.ones(len(stored)), N_RANDOM_STATES) @ stored
    noise = rng.standard_normal(mixtures.shape) * stored.std()
    share = rng.uniform(0.0, 0.5, (N_RANDOM_STATES, 1))
    return (mixtures + share * noise).astype(np.float32)


def open_probe_again(bundle: GuardBundle, device: Device) -> OnnxProbe:
    """Open the bundle's own probe on a device. The caller closes it. Raises GuardError."""
    path = bundle.folder / bundle.config.probe.file
    return OnnxProbe.from_bytes(path.read_bytes(), name=str(path), device=device)


_N_CTX = 512
_PROMPT = "What is shown in this picture, and is it safe?"

VectorDevice = Literal["CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to compare a bundle with.

    read_source: given the width of a state, returns what scores states as the probe's source does.
    read_states: given that width, returns states to compare on; None: random ones.
    max_score_difference: above it, the probe is not its source. n_gpu_layers: for the run on the
    GPU; None: all. replay: ask the fixed requests and compare; None: only where the model is in
    another quantization than the bundle's.
    n_requests, reference, record: see DriftSettings.
    """

    model: Path
    read_source: Callable[[int], Scorer] | None = None
    read_states: Callable[[int], NDArray[np.float32]] | None = None
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

    device: VectorDevice
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
    read_states = settings.read_states
    states = random_states(bundle) if read_states is None else read_states(n_features)
    if settings.read_source is None:
        report.notes.append("the probe was compared with no source: pass it with --source")
        return
    source = settings.read_source(n_features)
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
    report: VerifyReport, vector: ControlVector, settings: VerifySettings, device: VectorDevice
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


def _shift_failures(shifts: Sequence[LayerShift], device: VectorDevice) -> list[str]:
    where: Callable[[LayerShift], str] = lambda shift: (  # noqa: E731
        "nowhere" if shift.landed_on is None else f"first at block {shift.landed_on}"
    )
    return [
        f"on the {device}, the direction of block {shift.layer_index} shows up {where(shift)}, "
        f"with a relative error of {shift.relative_error:.3g}"
        for shift in shifts
        if not shift.is_as_stored
    ]


def _devices() -> tuple[VectorDevice, ...]:
    return ("CPU", "GPU") if native_facts().supports_gpu_offload else ("CPU",)


def _session(
    settings: VerifySettings, device: VectorDevice, *, bundle: Path | None = None
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
