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
from safesteer_edge.harvest.cache import N_EARLY_ROWS
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS
from safesteer_edge.harvest.run import Harvest, Progress
from safesteer_edge.metrics.statistics import auroc, auroc_interval

_SHRINKAGE: Final = 0.2
_DIGITS: Final = 4


def separation_by_layer(harvested: Harvest, progress: Progress) -> dict[str, Any]:
    """JSON: {"text" | "media": {"layers": […], "auroc": [layer][step], "n": [step][harmful, not]}}.

    A step that too few answers reach has null. Cost for the embedded default: a minute.
    """
    layers = harvested.shape.layers
    tables: dict[str, dict[str, Any]] = {}
    for n_done, layer in enumerate(layers, start=1):
        answers = harvested.answers((layer,), n_rows=N_EARLY_ROWS)
        for name in ("text", "media"):
            # What stands in words beside a picture is neither.
            carried = [a for a in answers if a.carrier != "beside"]
            chosen = [a for a in carried if (a.carrier == "text") == (name == "text")]
            if not chosen:
                continue
            table = tables.setdefault(name, {"layers": [], "auroc": [], "n": []})
            values, counts = _by_step(chosen)
            table["layers"].append(layer)
            table["auroc"].append(values)
            table["n"] = counts
        progress("comparing layers", n_done, len(layers))
    return tables


def prompt_discriminant(answers: Sequence[HarvestedAnswer]) -> NDArray[np.float64] | None:
    """Where harmful requests' prompts lie from the others': float64 (n_features,); None: one kind.

    answers: the model's own, with the states of one layer.
    """
    return _discriminant(answers, step=0)


def _by_step(answers: Sequence[HarvestedAnswer]) -> tuple[list[float | None], list[list[int]]]:
    made_from = [answer for answer in answers if part_of(answer.request) == "making"]
    tried_on = [answer for answer in answers if part_of(answer.request) != "making"]
    values: list[float | None] = []
    counts: list[list[int]] = []
    whole = _discriminant(made_from)
    for step in range(N_EARLY_ROWS):
        direction = _discriminant(made_from, step=0) if step == 0 else whole
        states, labels = _rows(tried_on, step)
        n_harmful = int(labels.sum())
        counts.append([n_harmful, len(labels) - n_harmful])
        if direction is None or min(counts[-1]) == 0:
            values.append(None)
            continue
        along = states @ direction
        values.append(round(auroc(along[labels == 1], along[labels == 0]), _DIGITS))
    return values, counts


def _discriminant(
    answers: Sequence[HarvestedAnswer], step: int | None = None
) -> NDArray[np.float64] | None:
    """Where harmful states lie from the others, the common spread divided out; None: one class."""
    parts = [_rows(answers, at) for at in ([step] if step is not None else range(1, N_EARLY_ROWS))]
    states = np.concatenate([rows for rows, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    if labels.min(initial=1) == labels.max(initial=0):
        return None
    means = [states[labels == label].mean(axis=0) for label in (0, 1)]
    centred = states - np.array(means)[labels]
    spread = centred.T @ centred / len(states)
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
        made_from = [answer for answer in answers if part_of(answer.request) == "making"]
        tried_on = [answer for answer in answers if part_of(answer.request) != "making"]
        direction = prompt_discriminant(made_from)
        n_harmful = sum(_is_harmful(answer) for answer in tried_on)
        counts = [n_harmful, len(tried_on) - n_harmful]
        if direction is None or not min(counts):
            return {"understood": False, "auroc": None, "interval": [0.0, 1.0], "n": counts}
        along = np.array([answer.states[0].astype(np.float64) @ direction for answer in tried_on])
        harmful = np.array([_is_harmful(answer) for answer in tried_on])
        values.append(auroc(along[harmful], along[~harmful]))
    value = float(np.median(values))
    low, high = auroc_interval(value, *counts)
    return {
        "understood": low > 0.5,
        "auroc": round(value, _DIGITS),
        "interval": [round(low, _DIGITS), round(high, _DIGITS)],
        "n": counts,
    }


def _is_harmful(answer: HarvestedAnswer) -> bool:
    return answer.request.label == "harmful"
