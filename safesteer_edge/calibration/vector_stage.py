"""From a harvest to an alignment vector: pairs of states, candidates, and pictures of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import VectorParts
from safesteer_edge.calibration.vector_fit import (
    VECTOR_FORMS,
    StatePairs,
    VectorCandidate,
    VectorChoice,
    VectorChooser,
    VectorForm,
    VectorSettings,
    make_directions,
    part_of,
    prompts_of,
    vector_candidates,
)
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.harvest.answers import HarvestedAnswer, decode_answer
from safesteer_edge.harvest.carriers import IMAGE_CARRIERS, Carrier, carried_items
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.harvest.vector_trial import Directions, ScoreStates
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

_N_EACH: Final = 24  # prompts in a picture
_DIGITS: Final = 3
Wanted = Callable[[Request], bool]
Modality = Literal["image", "audio"]
_CARRIED: Final[dict[Modality, tuple[Carrier, ...]]] = {
    "image": IMAGE_CARRIERS,
    "audio": ("speech",),
}


@dataclass(frozen=True, slots=True, eq=False)
class VectorTask:
    """session: unguarded, with its projector. probe_layers: what the probe's scores are made of.

    fit: fits the chosen probe to some answers and returns its scores.
    """

    session: SessionSettings
    probe_layers: tuple[int, ...]
    fit: Callable[[Sequence[HarvestedAnswer]], ScoreStates]
    residual_norms: Sequence[float]
    architecture: str
    settings: VectorSettings = field(default_factory=VectorSettings)


@dataclass(frozen=True, slots=True, eq=False)
class VectorResult:
    """parts: None where no vector helps, or none could be made. record: JSON, says why."""

    parts: VectorParts | None
    record: dict[str, Any]


def fit_vector(harvested: Harvest, task: VectorTask, progress: Progress) -> VectorResult:
    """The alignment vector of the modality that was harvested, images first.

    Raises EngineError; too little to work on is a result, not an error.
    """
    carried = {unit.carrier for unit in harvested.units}
    for modality in ("image", "audio"):
        if carried & {*_CARRIED[modality]}:
            return _fit(harvested, task, modality, progress)
    why = "nothing was carried in media: the model neither sees nor hears as it was loaded"
    return VectorResult(None, {"enabled": False, "why": why})


def _fit(
    harvested: Harvest, task: VectorTask, modality: Modality, progress: Progress
) -> VectorResult:
    is_making: Wanted = lambda request: part_of(request, task.settings.seed) == "making"  # noqa: E731
    pairs = _pairs(harvested, _CARRIED[modality], is_making)
    n_harmful = int(pairs.is_harmful.sum())
    record: dict[str, Any] = {
        "modality": modality,
        "n_making": {"harmful": n_harmful, "harmless": len(pairs.is_harmful) - n_harmful},
    }
    least = task.settings.n_least
    if min(n_harmful, len(pairs.is_harmful) - n_harmful) < least:
        why = f"too few requests as text and as {modality}; expected {least} of each kind"
        return VectorResult(None, {**record, "enabled": False, "why": why})
    score = task.fit(  # of requests that no candidate is tried on
        harvested.answers(task.probe_layers, wanted=is_making)
    )
    n_layer = len(task.residual_norms)
    by_form: dict[VectorForm, Directions] = {
        form: make_directions(pairs, form, n_layer) for form in VECTOR_FORMS
    }
    prompts = harvested.prompts(_CARRIED[modality])
    candidates = vector_candidates(by_form, pairs.layers, task.residual_norms, task.settings)
    with closing(open_runtime(task.session, layers=task.probe_layers)) as runtime:
        chooser = VectorChooser(runtime, score, by_form, task.settings, progress)
        choice = chooser.choose(prompts, candidates)
        record |= choice.record
        record["pictures"] = _pictures(runtime, harvested, task, choice.best, by_form)
    return VectorResult(_parts(choice, modality, task.architecture), record)


def _pairs(harvested: Harvest, carriers: Sequence[Carrier], is_making: Wanted) -> StatePairs:
    """Requests of the making part, as text and in media, at their prompts' last positions."""
    layers = harvested.shape.layers
    states: dict[tuple[str, bool], NDArray[np.float16]] = {}
    harmful: dict[str, bool] = {}
    answers = harvested.answers(
        layers,
        carriers=("text", *carriers),
        kinds=("own",),
        n_rows=1,
        wanted=is_making,
    )
    for answer in answers:
        states[answer.request.id, answer.carrier == "text"] = answer.states[0]
        harmful[answer.request.id] = answer.request.label == "harmful"
    ids = sorted(id for id in harmful if (id, True) in states and (id, False) in states)
    shape = (len(ids), len(layers), harvested.shape.n_embd)

    def stacked(*, is_text: bool) -> NDArray[np.float32]:
        rows = [states[id, is_text] for id in ids]
        return np.array(rows, dtype=np.float32).reshape(shape)

    return StatePairs(
        layers,
        stacked(is_text=True),
        stacked(is_text=False),
        np.array([harmful[id] for id in ids], dtype=bool),
    )


def _parts(choice: VectorChoice, modality: Modality, architecture: str) -> VectorParts | None:
    candidate, directions = choice.candidate, choice.directions
    if candidate is None or directions is None:
        return None
    metadata = {"form": candidate.form, "measured_sign": str(candidate.sign)}
    return VectorParts(
        # The data chose the sign: the file holds what is to be added, and the entry's is +1.
        vector=ControlVector(candidate.sign * directions, architecture, metadata=metadata),
        scale=candidate.scale,
        max_scale=candidate.scale,
        layers=candidate.layers,
        modalities=ModalityScales(
            image=candidate.scale if modality == "image" else None,
            audio=candidate.scale if modality == "audio" else None,
        ),
        gate=candidate.gate,
    )


# -- where prompts lie, in two dimensions: as text, in media, and in media with the vector on ------


def _pictures(
    runtime: Runtime,
    harvested: Harvest,
    task: VectorTask,
    best: VectorCandidate | None,
    by_form: Mapping[VectorForm, Directions],
) -> dict[str, Any]:
    """Points by kind: {"layer", "explained", "points": {"text harmful": [[x, y], …], …}}.

    The plane is that of the text-borne prompts' and media-borne prompts' own states together; the
    layer is the probe's first above the steered blocks, or its last. {} where none was tried.
    """
    if best is None:
        return {}
    candidate, probe_layers = replace(best, gate=None), task.probe_layers
    above = [layer for layer in probe_layers if layer >= candidate.layers[1]]
    layer = min(above) if above else max(probe_layers)
    carried = harvested.prompts((*IMAGE_CARRIERS, "speech"))
    media = [prompt for prompt in carried if prompt[0].label in ("harmful", "harmless")]
    chosen = prompts_of(media, "confirming", _N_EACH, task.settings.seed)
    ids = {request.id for request, _ in chosen}
    groups: dict[str, list[NDArray[np.floating]]] = {}
    for answer in harvested.answers(
        (layer,), kinds=("own",), n_rows=1, wanted=lambda request: request.id in ids
    ):
        where = "text" if answer.carrier == "text" else "media"
        groups.setdefault(f"{where} {answer.request.label}", []).append(answer.states[0])
    plane, explained = _plane(np.array([row for rows in groups.values() for row in rows]))
    directions = candidate.directions(by_form)
    slot, n_embd = probe_layers.index(layer), harvested.shape.n_embd
    for prompt in chosen:
        items = carried_items(*prompt, runtime)
        state = decode_answer(runtime, items, n_tokens=0, control_vector=directions).states[0]
        state = state[slot * n_embd : (slot + 1) * n_embd]
        groups.setdefault(f"media with vector {prompt[0].label}", []).append(state)
    return {
        "layer": layer,
        "candidate": candidate.to_json(),
        "explained": [round(float(share), _DIGITS) for share in explained],
        "points": {
            name: np.round(plane(np.array(rows)), _DIGITS).tolist()
            for name, rows in sorted(groups.items())
        },
    }


def _plane(states: NDArray[np.floating]) -> tuple[Any, NDArray[np.float64]]:
    """A map to the first two principal components of these states, and their shares of variance."""
    wide = states.astype(np.float64)
    mean, deviation = wide.mean(axis=0), wide.std(axis=0) + 1e-6
    _, sizes, right = np.linalg.svd((wide - mean) / deviation, full_matrices=False)
    # The sign of a component is arbitrary: its largest entry is positive.
    right = (
        right[:2]
        * np.sign(right[:2][np.arange(len(right[:2])), np.abs(right[:2]).argmax(1)])[:, np.newaxis]
    )
    explained = sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-12)
    return (
        lambda rows: ((rows.astype(np.float64) - mean) / deviation) @ right.T,
        explained,
    )
