"""From a harvest to an alignment vector: pairs of states, candidates, and pictures of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.schema import ModalityScales
from safesteer_edge.bundle.writer import VectorParts
from safesteer_edge.calibration.carriers import DRAWN_CARRIERS, IMAGE_CARRIERS, Carrier
from safesteer_edge.calibration.harvest import HarvestedAnswer
from safesteer_edge.calibration.harvest_run import Harvest, Progress
from safesteer_edge.calibration.measured_parts import ScoreStates
from safesteer_edge.calibration.vector_candidates import (
    VectorSettings,
    part_of,
    vector_candidates,
)
from safesteer_edge.calibration.vector_fit import VectorChoice, VectorChooser
from safesteer_edge.calibration.vector_forms import (
    VECTOR_FORMS,
    StatePairs,
    VectorForm,
    make_directions,
)
from safesteer_edge.calibration.vector_pictures import state_pictures
from safesteer_edge.calibration.vector_trial import Directions
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.runtime import Runtime, open_runtime
from safesteer_edge.settings import SessionSettings

Modality = Literal["image", "audio"]
_PAIRED: Final[dict[Modality, tuple[Carrier, ...]]] = {
    "image": DRAWN_CARRIERS,
    "audio": ("speech",),
}
_TRIED: Final[dict[Modality, tuple[Carrier, ...]]] = {
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
        if carried & {*_PAIRED[modality]}:
            return _fit(harvested, task, modality, progress)
    why = "nothing was carried in media: the model neither sees nor hears as it was loaded"
    return VectorResult(None, {"enabled": False, "why": why})


def _fit(
    harvested: Harvest, task: VectorTask, modality: Modality, progress: Progress
) -> VectorResult:
    pairs = _pairs(harvested, _PAIRED[modality], task.settings.seed)
    n_harmful = int(pairs.is_harmful.sum())
    record: dict[str, Any] = {
        "modality": modality,
        "n_making": {"harmful": n_harmful, "harmless": len(pairs.is_harmful) - n_harmful},
    }
    least = task.settings.n_least
    if min(n_harmful, len(pairs.is_harmful) - n_harmful) < least:
        why = f"too few requests as text and as {modality}; expected {least} of each kind"
        return VectorResult(None, {**record, "enabled": False, "why": why})
    score = task.fit(_unseen(harvested, task))
    n_layer = len(task.residual_norms)
    by_form: dict[VectorForm, Directions] = {
        form: make_directions(pairs, form, n_layer) for form in VECTOR_FORMS
    }
    prompts = harvested.prompts(_TRIED[modality])
    candidates = vector_candidates(by_form, pairs.layers, task.residual_norms, task.settings)
    runtime = open_runtime(task.session, layers=task.probe_layers)
    try:
        chooser = VectorChooser(runtime, score, by_form, task.settings, progress)
        choice = chooser.choose(prompts, candidates)
        record |= choice.record
        record["pictures"] = _pictures(runtime, harvested, task, choice, by_form)
    finally:
        runtime.close()
    return VectorResult(_parts(choice, modality, task.architecture), record)


def _pairs(harvested: Harvest, carriers: Sequence[Carrier], seed: int) -> StatePairs:
    """Requests of the making part, as text and in media, at their prompts' last positions."""
    layers = harvested.shape.layers
    states: dict[tuple[str, bool], NDArray[np.float16]] = {}
    harmful: dict[str, bool] = {}
    answers = harvested.answers(
        layers,
        carriers=("text", *carriers),
        kinds=("own",),
        n_rows=1,
        wanted=lambda request: part_of(request, seed) == "making",
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


def _unseen(harvested: Harvest, task: VectorTask) -> list[HarvestedAnswer]:
    """Answers to requests that no candidate is tried on."""
    seed = task.settings.seed
    return harvested.answers(
        task.probe_layers, wanted=lambda request: part_of(request, seed) == "making"
    )


def _pictures(
    runtime: Runtime,
    harvested: Harvest,
    task: VectorTask,
    choice: VectorChoice,
    by_form: dict[VectorForm, Directions],
) -> dict[str, Any]:
    """States with the vector and without, in two dimensions; {} where none was tried."""
    if choice.best is None:
        return {}
    return state_pictures(
        runtime,
        harvested,
        task.probe_layers,
        replace(choice.best, gate=None),
        by_form,
        seed=task.settings.seed,
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
