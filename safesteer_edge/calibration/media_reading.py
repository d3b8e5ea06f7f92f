"""Whether a model understands what its pictures ask: else its answers to them teach a probe wrong.

Harmful requests and their harmless twins, drawn alike with the same words beside them, differ only
in what the picture says. If the prompt's states do not tell them apart, an answer to the harmful
one is about nothing harmful, and labelling it so would spoil the probe for text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from safesteer_edge.calibration.carriers import DRAWN_CARRIERS
from safesteer_edge.calibration.harvest import HarvestedAnswer
from safesteer_edge.calibration.harvest_run import Harvest
from safesteer_edge.calibration.separation import prompt_discriminant
from safesteer_edge.calibration.vector_candidates import part_of
from safesteer_edge.evaluation.statistics import auroc, auroc_interval

_DIGITS: Final = 4


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
