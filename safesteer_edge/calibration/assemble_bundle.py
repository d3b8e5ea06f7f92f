"""A guard bundle from a probe and a vector that were made elsewhere, not calibrated yet.

What can be measured without labels is measured on the model itself: the residual stream's norms
and the self-tests. What only a calibration can choose (threshold, strength, limits, α) is set on
the cautious side or given by the user, and the bundle's figures say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.canaries import MIN_CANARY_SPREAD, Canaries, EngineCanary, ProbeCanary
from safesteer_edge.bundle.fingerprint import fingerprint_model
from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import BundleParts, VectorParts
from safesteer_edge.calibration.separation import (
    ProbeSeparation,
    measure_separation,
    require_separation,
)
from safesteer_edge.engine.hidden_states import RouteName
from safesteer_edge.errors import ProbeFileError, SettingsError, VectorFileError
from safesteer_edge.formats.control_vector_file import (
    BLOCK_OUTPUT_0BASED,
    ControlVector,
    read_control_vector,
)
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.formats.version import VERSION
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.harvest.answers import question_ids
from safesteer_edge.harvest.run import Progress
from safesteer_edge.probe.probe import OnnxProbe
from safesteer_edge.requests.requests import Label, load_requests
from safesteer_edge.session.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session.settings import SessionSettings

# -- hidden states at the end of a few prompts, and the residual stream's norms: no labels needed --

N_REQUESTS_PER_LABEL = 8
MEASURED_LABELS: tuple[Label, ...] = ("harmful", "ordinary")


@dataclass(frozen=True, slots=True, eq=False)
class PromptStates:
    """What the model does with the package's own requests (train split).

    token_ids: the prompts, by label. states: float32 (n_prompts, n_features), read at the prompts'
    last token on the decode path. residual_norms: mean L2 norm of each block's output there.
    """

    token_ids: Mapping[Label, Sequence[tuple[int, ...]]]
    states: Mapping[Label, NDArray[np.float32]]
    route: RouteName | None
    residual_norms: tuple[float, ...]


def measure_prompt_states(session: SessionSettings, layers: Sequence[int]) -> PromptStates:
    """Run some 30 short prompts through the model; it is loaded twice.

    session: with its guard off. layers: whose states are wanted, joined in this order.
    Raises ModelFileError, TemplateError, EngineError.
    """
    with closing(open_runtime(session, layers=layers)) as runtime:
        token_ids: dict[Label, list[tuple[int, ...]]] = {
            label: [
                question_ids(runtime, request.text)
                for request in load_requests(splits=("train",), labels=(label,))[
                    :N_REQUESTS_PER_LABEL
                ]
            ]
            for label in MEASURED_LABELS
        }
        states: dict[Label, NDArray[np.float32]] = {
            label: _last_states(runtime, prompts) for label, prompts in token_ids.items()
        }
        route = runtime.route.name if runtime.route else None
        n_layer = runtime.model.n_layer
    with closing(open_runtime(session, layers=range(n_layer))) as runtime:
        prompts = [prompt for label in MEASURED_LABELS for prompt in token_ids[label]]
        blocks = _last_states(runtime, prompts).reshape(len(prompts), n_layer, -1)
    norms = np.linalg.norm(blocks.astype(np.float64), axis=2).mean(axis=0)
    return PromptStates(token_ids, states, route, tuple(float(norm) for norm in norms))


def _last_states(runtime: Runtime, prompts: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    return np.stack([last_state_of(runtime.engine, runtime.model, prompt) for prompt in prompts])


# -- the parts, put together and checked against the model -----------------------------------------

REFUSAL_TEXT: Final = (
    "I can't help with that, because it could hurt someone. I'm glad to help another way."
)
# Acts at the probe's own even odds, and hard: false alarms are the lesser mistake as long as
# nobody has measured them.
CAUTIOUS_POLICY: Final = GuardPolicy(
    strength=16.0,
    threshold=0.5,
    hard_threshold=0.8,
    hard_patience=4,
    risk_limit=0.6,
    risk_decay=0.95,
    risk_min_steps=4,
    risk_gain=1.0,
    conversation_carry=0.25,
)
_LAYERS_KEY = "safesteer.layers"
_N_PROBE_CANARIES = 8
_N_ENGINE_CANARIES = 2
# Where to look for a low and a high score: the measured states, and beyond them, by multiples of
# their distance from the mean.
_REACHES = (1.0, -1.0, 3.0, -3.0, 10.0, -10.0, 30.0, -30.0)


@dataclass(frozen=True, slots=True)
class AssemblySettings:
    """What to put together.

    layers: the states that the probe reads, in its order: block outputs 0 … n_layer − 1, or
    n_layer alone (after the final norm); none: what its file says. scale: α of the vector, for
    prompts with images; needed with one. session: model, threads and context, its guard off.
    """

    name: str
    model: ModelInfo
    session: SessionSettings
    probe: Path
    probe_onnx: bytes
    layers: tuple[int, ...]
    vector: Path | None = None
    scale: float | None = None


@dataclass(frozen=True, slots=True)
class AssembledBundle:
    """The parts, ready for `write_bundle`, and how well the probe separates."""

    parts: BundleParts
    separation: ProbeSeparation


def assemble_bundle(settings: AssemblySettings, progress: Progress) -> AssembledBundle:
    """Run the model, measure what a bundle needs, and return its parts.

    Raises ProbeFileError, VectorFileError or SettingsError where the parts do not fit the model, or
    the probe tells harmful requests from others badly; EngineError if the model does not run.
    """
    vector = _vector_parts(settings)
    with OnnxProbe.from_bytes(settings.probe_onnx, name=str(settings.probe), device="cpu") as probe:
        layers = _probe_layers(probe, settings)
        measured = measure_prompt_states(settings.session, layers)
        canaries = _canaries(probe, measured)
        n_layer = settings.model.n_layer
        separation = measure_separation(settings.session, probe, layers, n_layer, progress)
    require_separation(separation, str(settings.probe))
    parts = BundleParts(
        name=settings.name,
        created_by=f"safesteer-edge {VERSION}",
        model=fingerprint_model(settings.model),
        probe_onnx=settings.probe_onnx,
        probe_layers=layers,
        policy=CAUTIOUS_POLICY,
        residual_norms=measured.residual_norms,
        canaries=canaries,
        refusal_text=REFUSAL_TEXT,
        vector=vector,
        route_hint=measured.route,
        figures={"calibrated": False, "separation_of_probe": separation.to_json()},
    )
    return AssembledBundle(parts, separation)


def _probe_layers(probe: OnnxProbe, settings: AssemblySettings) -> tuple[int, ...]:
    """Return what the probe reads, checked against the model and against what its file says."""
    model, name = settings.model, repr(str(settings.probe))
    for key, own in (
        ("architecture", model.architecture),
        ("vocabulary_sha256", model.vocabulary_sha256),
    ):
        says = probe.metadata.get(f"safesteer.model.{key}", own)
        if says != own:
            raise ProbeFileError(
                f"{name} is for a model with {key} {says[:70]!r}; {model.path.name!r} has {own!r}"
            )
    recorded = tuple(
        int(part) for part in probe.metadata.get(_LAYERS_KEY, "").split(",") if part.isdecimal()
    )
    layers = settings.layers or recorded
    if not layers:
        raise SettingsError(f"{name} does not say which layers it reads; pass --layers")
    if recorded and recorded != layers:
        raise ProbeFileError(
            f"{name} says that it reads layers {list(recorded)}, not {list(layers)}; leave out "
            "--layers, or convert it again"
        )
    n_layer = model.n_layer
    are_blocks = all(0 <= layer < n_layer for layer in layers)
    if len(set(layers)) < len(layers) or not (are_blocks or layers == (n_layer,)):
        raise SettingsError(
            f"the probe cannot read layers {list(layers)}; expected different block outputs, 0 to "
            f"{n_layer - 1}, or {n_layer} alone (after the final norm)"
        )
    if probe.n_features != model.n_embd * len(layers):
        raise ProbeFileError(
            f"{name} reads states of {probe.n_features} values; layers {list(layers)} of "
            f"{model.path.name!r} give {model.n_embd * len(layers)}: name the layers that it was "
            "trained on"
        )
    return layers


def _vector_parts(settings: AssemblySettings) -> VectorParts | None:
    if settings.vector is None:
        return None
    if settings.scale is None or settings.scale == 0 or not np.isfinite(settings.scale):
        raise SettingsError(
            f"the vector's scale is {settings.scale}; pass a --scale other than 0: no calibration "
            "has chosen one"
        )
    vector = _for_model(read_control_vector(settings.vector), settings.vector, settings.model)
    steered = np.flatnonzero(vector.directions.any(axis=1))
    if not len(steered):
        raise VectorFileError(f"{str(settings.vector)!r} holds zeros alone; make it again")
    return VectorParts(
        vector=vector,
        scale=settings.scale,
        max_scale=abs(settings.scale),
        layers=(int(steered[0]), int(steered[-1])),
        modalities=ModalityScales(image=settings.scale),
    )


def _for_model(vector: ControlVector, path: Path, model: ModelInfo) -> ControlVector:
    """Return the vector with one row for each block of the model."""
    remedy = f"make it with 'safesteer-edge convert vector … --model {model.path.name}'"
    if vector.layer_convention != BLOCK_OUTPUT_0BASED:
        raise VectorFileError(f"{str(path)!r} does not say where it was measured; {remedy}")
    if vector.model_hint != model.architecture:
        raise VectorFileError(
            f"{str(path)!r} is for {vector.model_hint!r} models, and {model.path.name!r} is "
            f"{model.architecture!r}; {remedy}"
        )
    if vector.n_embd != model.n_embd or vector.n_layer > model.n_layer:
        raise VectorFileError(
            f"{str(path)!r} has shape ({vector.n_layer}, {vector.n_embd}); {model.path.name!r} has "
            f"({model.n_layer}, {model.n_embd}) (n_layer, n_embd): use the vector of this model"
        )
    directions = np.zeros((model.n_layer, model.n_embd), dtype=np.float32)
    directions[: vector.n_layer] = vector.directions
    return ControlVector(directions, vector.model_hint, metadata=vector.metadata)


def _canaries(probe: OnnxProbe, measured: PromptStates) -> Canaries:
    """Return states that span the probe's scores, and prompts that must give their states again."""
    states = np.concatenate(list(measured.states.values())).astype(np.float64)
    mean = states.mean(axis=0)
    pool = np.concatenate([mean + reach * (states - mean) for reach in _REACHES])
    pool = pool.astype(np.float32)
    scores = probe.score(pool)
    order = np.argsort(scores, kind="stable")
    picked = order[np.linspace(0, len(order) - 1, _N_PROBE_CANARIES).astype(int)]
    spread = float(scores.max() - scores.min())
    if spread < MIN_CANARY_SPREAD:
        raise ProbeFileError(
            f"the probe gives every state of this model {scores.mean():.4f} ± {spread / 2:.4f}, so "
            "it tells nothing apart; check that it was trained on this model and these layers"
        )
    ordinary = measured.states["ordinary"][:_N_ENGINE_CANARIES]
    engine = tuple(
        EngineCanary(_row(state), float(score), token_ids)
        for state, score, token_ids in zip(
            ordinary, probe.score(ordinary), measured.token_ids["ordinary"], strict=False
        )
    )
    probe_canaries = tuple(ProbeCanary(_row(pool[index]), float(scores[index])) for index in picked)
    return Canaries(probe_canaries, engine)


def _row(state: NDArray[np.float32]) -> bytes:
    return state.astype("<f4").tobytes()
