"""A guard bundle checked against its model and its sources: what `safesteer-edge verify` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle, read_config
from safesteer_edge.bundle.fingerprint import compare, fingerprint_model
from safesteer_edge.engine.native import native_facts
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.errors import (
    BundleError,
    EngineError,
    GuardError,
    ProbeFileError,
    VectorFileError,
)
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.harvest.answers import decode_answer
from safesteer_edge.harvest.drift import Drift, DriftSettings, verify_drift
from safesteer_edge.harvest.run import Progress
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

N_RANDOM_STATES: Final = 256
MAX_SCORE_DIFFERENCE: Final = 1e-5
_N_CTX: Final = 512
_PROMPT: Final = "What is shown in this picture, and is it safe?"

Scorer = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
VectorDevice = Literal["CPU", "GPU"]


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to compare a bundle with.

    session: of the model, its threads and layers on the GPU (in the run there).
    read_source: given the width of a state, returns what scores states as the probe's source does.
    read_states: given that width, returns states to compare on; None: random ones.
    max_score_difference: above it, the probe is not its source. replay: ask the fixed requests and
    compare; None: only where the model is in another quantization than the bundle's.
    n_requests, reference, record: see DriftSettings.
    """

    session: SessionSettings
    read_source: Callable[[int], Scorer] | None = None
    read_states: Callable[[int], NDArray[np.float32]] | None = None
    max_score_difference: float = MAX_SCORE_DIFFERENCE
    replay: bool | None = None
    n_requests: int | None = None
    reference: Path | None = None
    record: bool = False


@dataclass(frozen=True, slots=True)
class ProbeParity:
    """How far two scorers differ over the same states. provider: where the bundle's probe ran."""

    provider: str
    n_states: int
    max_difference: float
    least_score: float
    largest_score: float


@dataclass(frozen=True, slots=True)
class LayerShift:
    """What one direction did, at one block. All but the length are relative to its largest number.

    relative_error: the largest |shift − direction|. rounding: how much of it float32 alone
    explains. shift_below: the largest change of any lower block's output. landed_on: the first
    block whose output changed by more than MAX_SHIFT_ERROR, None if none did.
    """

    layer_index: int
    direction_norm: float
    relative_error: float
    rounding: float
    shift_below: float
    landed_on: int | None

    @property
    def is_as_stored(self) -> bool:
        """This is the direction, at its block and none below."""
        allowed = MAX_SHIFT_ERROR + self.rounding
        # Written so that a NaN fails.
        is_close = self.relative_error <= allowed and self.shift_below <= allowed
        return is_close and self.landed_on == self.layer_index


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
    info = check_language_model(Path(settings.session.model or ""))
    match = compare(config.model, fingerprint_model(info))
    report = VerifyReport(config.name, info.path.name, info.quantization)
    session = replace(settings.session, guard="off", n_ctx=_N_CTX, probe_device="cpu")
    on_cpu = replace(session, n_gpu_layers=0)
    try:
        runtime = open_runtime(replace(on_cpu, bundle=folder, guard="monitor"))
    except (BundleError, ProbeFileError, VectorFileError) as error:
        report.failures.append(f"the bundle does not load: {error}")
        return report
    with closing(runtime):
        bundle = runtime.bundle
        assert bundle is not None  # only `guard="off"` opens none
        report.match, report.n_engine_canaries = bundle.match, len(config.canaries.engine)
        report.is_calibrated = bundle.is_calibrated
        report.notes.extend(bundle.warnings)
        _verify_probe(report, bundle, settings)
        vector = bundle.control_vector
    if vector is None:
        report.notes.append("the bundle has no vector")
    else:
        _verify_vector(report, vector, on_cpu, "CPU")
        if native_facts().supports_gpu_offload:
            _verify_vector(report, vector, session, "GPU")
    is_replayed = settings.replay
    if is_replayed is None:
        is_replayed = settings.record or match != "exact"
    if is_replayed:
        wanted = DriftSettings(session, settings.n_requests, settings.reference, settings.record)
        report.drift = verify_drift(folder, info, wanted, progress)
        if report.drift.reference is None:
            report.notes.append(
                "what the guard did in the bundle's own quantization is not known: pass a file of "
                "that with --reference"
            )
        report.failures.extend(report.drift.reasons)
    return report


# -- whether a bundle's probe still is the probe that it was made from: scores side by side --------
# The source computes its scores itself (scikit-learn, another ONNX graph) or in NumPy and
# float64; the converted probe runs in ONNX Runtime, as it does while the guard decodes.


def _verify_probe(report: VerifyReport, bundle: GuardBundle, settings: VerifySettings) -> None:
    n_features = bundle.config.probe.n_features
    read_states = settings.read_states
    states = _random_states(bundle) if read_states is None else read_states(n_features)
    if settings.read_source is None:
        report.notes.append("the probe was compared with no source: pass it with --source")
        return
    source = settings.read_source(n_features)
    path = bundle.folder / bundle.config.probe.file
    for device in ("cpu", "cuda"):
        try:
            probe = OnnxProbe.from_bytes(path.read_bytes(), name=str(path), device=device)
        except GuardError:
            if device == "cpu":
                raise
            return  # no CUDA here
        with probe:
            scores, provider = probe.score(states).astype(np.float64), probe.provider
        difference = float(np.abs(scores - source(states)).max())
        low, high = float(scores.min()), float(scores.max())
        report.probe.append(ProbeParity(provider, len(states), difference, low, high))
        # Written so that a NaN fails.
        if not difference <= settings.max_score_difference:
            report.failures.append(
                f"on {provider}, a score is {difference:.3g} from the source's; expected at "
                f"most {settings.max_score_difference:g}: convert the probe again"
            )


def _random_states(bundle: GuardBundle) -> NDArray[np.float32]:
    """Return states like the model's own: random mixtures of the bundle's stored ones, and noise.

    Float32 (N_RANDOM_STATES, n_features). Pure noise would leave most probes saturated.
    """
    rng = np.random.default_rng(0)
    canaries = (*bundle.config.canaries.probe, *bundle.config.canaries.engine)
    stored = np.stack([canary.state() for canary in canaries]).astype(np.float64)
    mixtures = rng.dirichlet(np.ones(len(stored)), N_RANDOM_STATES) @ stored
    noise = rng.standard_normal(mixtures.shape) * stored.std()
    share = rng.uniform(0.0, 0.5, (N_RANDOM_STATES, 1))
    return (mixtures + share * noise).astype(np.float32)


# -- whether llama.cpp adds each direction where the bundle says: measured in the residual stream --
# One direction at a time is switched on for the last token of a prompt, and the outputs of all
# blocks are read back through the hidden-state route. What changed at the direction's own block
# must be the direction, and nothing may have changed below it. The prompt before that token is
# evaluated without the vector, so both runs see the same cache.

MAX_SHIFT_ERROR: Final = 1e-3
"""Of a shift, relative to the direction's largest number."""

# A sum of float32 is rounded to 2⁻²⁴ of its size: reading a small shift back as the difference of
# two large states cannot be better than this share of them.
_FLOAT32_ROUNDING = 2.0**-23


def _verify_vector(
    report: VerifyReport, vector: ControlVector, session: SessionSettings, device: VectorDevice
) -> None:
    with closing(open_runtime(session, layers=range(vector.n_layer))) as runtime:
        try:
            shifts = measure_shifts(runtime, vector, runtime.model.tokenize_plain(_PROMPT))
        except EngineError as error:
            report.failures.append(f"on the {device}, the vector could not be measured: {error}")
            return
    report.vector.append(VectorRun(device, tuple(shifts)))
    for shift in shifts:
        where = "nowhere" if shift.landed_on is None else f"first at block {shift.landed_on}"
        if not shift.is_as_stored:
            report.failures.append(
                f"on the {device}, the direction of block {shift.layer_index} shows up {where}, "
                f"with a relative error of {shift.relative_error:.3g}"
            )


def measure_shifts(
    runtime: Runtime, vector: ControlVector, token_ids: Sequence[int]
) -> list[LayerShift]:
    """Apply each non-zero direction alone, and measure what it does. Costs a pass for each.

    runtime: opened with `layers=range(n_layer)`, so that every block's output can be read.
    vector: of the model's own shape, at the scale that is to be checked.
    Raises EngineError if llama.cpp refuses the vector.
    """
    plain = _block_outputs(runtime, token_ids, None)
    return [
        _measure(runtime, vector, int(layer_index), token_ids, plain)
        for layer_index in np.flatnonzero(vector.directions.any(axis=1))
    ]


def _measure(
    runtime: Runtime,
    vector: ControlVector,
    layer_index: int,
    token_ids: Sequence[int],
    plain: NDArray[np.float64],
) -> LayerShift:
    alone = np.zeros_like(vector.directions)
    alone[layer_index] = vector.directions[layer_index]
    steered = _block_outputs(runtime, token_ids, alone)
    shift = steered - plain
    direction = vector.directions[layer_index].astype(np.float64)
    largest = float(np.abs(direction).max())
    size = float(np.abs(np.stack([plain[layer_index], steered[layer_index]])).max())
    rounding = _FLOAT32_ROUNDING * size / largest
    changes = np.abs(shift).max(axis=1) / largest
    moved = np.flatnonzero(changes > MAX_SHIFT_ERROR + rounding)
    return LayerShift(
        layer_index=layer_index,
        direction_norm=float(np.linalg.norm(direction)),
        relative_error=float(np.abs(shift[layer_index] - direction).max()) / largest,
        rounding=rounding,
        shift_below=float(changes[:layer_index].max()),
        landed_on=int(moved[0]) if len(moved) else None,
    )


def _block_outputs(
    runtime: Runtime, token_ids: Sequence[int], directions: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Return every block's output at the last token, float64 (n_layer, n_embd)."""
    items = [TokenRun(tuple(token_ids))]
    state = decode_answer(runtime, items, n_tokens=0, control_vector=directions).states[0]
    return state.astype(np.float64).reshape(runtime.model.n_layer, runtime.model.n_embd)
