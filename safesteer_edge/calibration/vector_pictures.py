"""Where prompts lie, in two dimensions: as text, in media, and in media with the vector on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.carriers import DRAWN_CARRIERS, carried_items, carry
from safesteer_edge.calibration.decoded_answer import decode_answer
from safesteer_edge.calibration.harvest_run import Harvest
from safesteer_edge.calibration.requests_data import Label
from safesteer_edge.calibration.vector_candidates import VectorCandidate, prompts_of
from safesteer_edge.calibration.vector_forms import VectorForm
from safesteer_edge.calibration.vector_trial import Directions
from safesteer_edge.runtime import Runtime

_N_EACH: Final = 24
_DIGITS: Final = 3
_LABELS: Final[tuple[Label, ...]] = ("harmful", "harmless")


def state_pictures(
    runtime: Runtime,
    harvested: Harvest,
    probe_layers: tuple[int, ...],
    candidate: VectorCandidate,
    by_form: Mapping[VectorForm, Directions],
    *,
    seed: int,
) -> dict[str, Any]:
    """Points by kind: {"layer", "explained", "points": {"text harmful": [[x, y], …], …}}.

    The plane is that of the text-borne prompts' and media-borne prompts' own states together; the
    layer is the probe's first above the steered blocks, or its last. runtime reads probe_layers.
    """
    above = [layer for layer in probe_layers if layer >= candidate.layers[1]]
    layer = min(above) if above else max(probe_layers)
    carried = harvested.prompts((*DRAWN_CARRIERS, "speech"))
    media = [prompt for prompt in carried if prompt[0].label in _LABELS]
    chosen = prompts_of(media, "confirming", _N_EACH, seed)
    ids = {request.id for request, _ in chosen}
    groups: dict[str, list[NDArray[np.floating]]] = {}
    for answer in harvested.answers(
        (layer,), kinds=("own",), n_rows=1, wanted=lambda request: request.id in ids
    ):
        where = "text" if answer.carrier == "text" else "media"
        groups.setdefault(f"{where} {answer.request.label}", []).append(answer.states[0])
    plane, explained = _plane(np.array([row for rows in groups.values() for row in rows]))
    directions = replace(candidate, gate=None).directions(by_form)
    slot, n_embd = probe_layers.index(layer), harvested.shape.n_embd
    for prompt in chosen:
        items = carried_items(carry(*prompt, runtime), runtime)
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
