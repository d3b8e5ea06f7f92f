"""How well states tell harmful from harmless, at every layer and step: what a probe could find.

At each layer a linear discriminant (shrunk covariance) is made from the answers to 60 % of the
requests and tried on the others. Step 0 is the prompt's last position, where harmful requests are
told from all others; at steps 1 to 16 it is answers that comply with a harmful request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.vector_fit import part_of
from safesteer_edge.harvest.answers import HarvestedAnswer
from safesteer_edge.harvest.cache import N_EARLY_STATES
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, TEXT_CARRIERS
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.metrics.statistics import auroc, auroc_interval

_SHRINKAGE: Final = 0.2
_DIGITS: Final = 4


def separation_by_layer(
    harvested: Harvest, progress: Progress, layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """JSON: {"text" | "media": {"layers": […], "auroc": [layer][step], "n": [step][harmful, not]}}.

    layers: None: all. A step that too few answers reach has null. Cost for the embedded default:
    a minute.
    """
    layers = harvested.shape.layers if layers is None else layers
    tables: dict[str, dict[str, Any]] = {}
    for n_done, layer in enumerate(layers, start=1):
        answers = harvested.answers((layer,), n_rows=N_EARLY_STATES)
        for name in ("text", "media"):
            # What stands in words beside a picture is neither.
            carried = [a for a in answers if a.carrier != "beside"]
            chosen = [a for a in carried if (a.carrier in TEXT_CARRIERS) == (name == "text")]
            if not chosen:
                continue
            table = tables.setdefault(name, {"layers": [], "auroc": [], "n": []})
            values, counts = _by_step(chosen)
            table["layers"].append(layer)
            table["auroc"].append(values)
            table["n"] = counts
        progress("comparing layers", n_done, len(layers))
    return tables


def _by_step(answers: Sequence[HarvestedAnswer]) -> tuple[list[float | None], list[list[int]]]:
    made_from, tried_on = _parts(answers)
    values: list[float | None] = []
    counts: list[list[int]] = []
    whole, at_prompt = _discriminant(made_from), _discriminant(made_from, step=0)
    for step in range(N_EARLY_STATES):
        value, n = _auroc_along(whole if step else at_prompt, tried_on, step)
        values.append(None if value is None else round(value, _DIGITS))
        counts.append(n)
    return values, counts


def _parts(
    answers: Sequence[HarvestedAnswer],
) -> tuple[list[HarvestedAnswer], list[HarvestedAnswer]]:
    """What a discriminant is made from, and what it is tried on."""
    made_from = [answer for answer in answers if part_of(answer.request) == "making"]
    return made_from, [answer for answer in answers if part_of(answer.request) != "making"]


def _auroc_along(
    direction: NDArray[np.float64] | None, answers: Sequence[HarvestedAnswer], step: int
) -> tuple[float | None, list[int]]:
    """How well the direction tells the states apart, None where it cannot; [harmful, not]."""
    states, labels = _rows(answers, step)
    n = [int(labels.sum()), int((labels == 0).sum())]
    if direction is None or not min(n):
        return None, n
    along = states @ direction
    return auroc(along[labels == 1], along[labels == 0]), n


def _discriminant(
    answers: Sequence[HarvestedAnswer], step: int | None = None
) -> NDArray[np.float64] | None:
    """Where harmful states lie from the others, the common spread divided out; None: one class."""
    parts = [
        _rows(answers, at) for at in ([step] if step is not None else range(1, N_EARLY_STATES))
    ]
    states = np.concatenate([rows for rows, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    if labels.min(initial=1) == labels.max(initial=0):
        return None
    means = [states[labels == label].mean(axis=0) for label in (0, 1)]
    for label, mean in enumerate(means):
        states[labels == label] -= mean
    spread = states.T @ states / len(states)
    diagonal = np.diag(spread).copy()
    spread *= 1.0 - _SHRINKAGE
    spread[np.diag_indices_from(spread)] += _SHRINKAGE * diagonal + 1e-6 * diagonal.mean() + 1e-9
    return np.linalg.solve(spread, means[1] - means[0])


def _rows(
    answers: Sequence[HarvestedAnswer], step: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """States at one step and their labels, of the answers that are so long."""
    if step == 0:
        kept = [answer for answer in answers if answer.kind == "own"]
        labels = [int(answer.request.label == "harmful") for answer in kept]
    else:
        kept = [answer for answer in answers if len(answer.states) > step]
        labels = [answer.label for answer in kept]
    n_features = answers[0].states.shape[1] if answers else 0
    states = np.array([answer.states[step] for answer in kept], dtype=np.float64)
    return states.reshape(len(kept), n_features), np.array(labels, dtype=np.int64)


# -- whether a model understands what its pictures ask: else its answers to them teach a probe wrong
# Harmful requests and their harmless twins, drawn alike with the same words beside them, differ
# only in what the picture says. If the prompt's states do not tell them apart, an answer to the
# harmful one is about nothing harmful, and labelling it so would spoil the probe for text.


def reading_of_media(harvested: Harvest, layers: Sequence[int]) -> dict[str, Any]:
    """JSON: {"understood", "auroc", "interval", "n": [harmful, harmless]}; {} if nothing was drawn.

    auroc: the median over these layers, of requests that took no part in the discriminant.
    understood: its 95 % interval is above 0.5.
    """
    if not any(unit.carrier in DRAWN_CARRIERS for unit in harvested.units):
        return {}
    values: list[float] = []
    counts = [0, 0]
    for layer in layers:
        answers = harvested.answers(
            (layer,),
            carriers=DRAWN_CARRIERS,
            kinds=("own",),
            n_rows=1,
            wanted=lambda request: request.label in ("harmful", "harmless"),
        )
        made_from, tried_on = _parts(answers)
        value, counts = _auroc_along(_discriminant(made_from, step=0), tried_on, 0)
        if value is None:
            return {"understood": False, "auroc": None, "interval": [0.0, 1.0], "n": counts}
        values.append(value)
    value = float(np.median(values))
    low, high = auroc_interval(value, *counts)
    return {
        "understood": low > 0.5,
        "auroc": round(value, _DIGITS),
        "interval": [round(low, _DIGITS), round(high, _DIGITS)],
        "n": counts,
    }
