"""A probe that separates the package's requests on a tiny model, which understands none of them.

Fitted to the very requests that it will be measured on: by heart, as the model has it no better.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.separation import COUNTS
from safesteer_edge.harvest.answers import decode_answer
from safesteer_edge.harvest.replay import N_TOKENS
from safesteer_edge.requests.requests import load_requests, recalibration_requests, spread
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.runtime import open_runtime
from tests.guarded_tiny import PROBE_LAYERS, GuardedTiny

_RIDGE = 1e-3
_TOKEN_WEIGHT = 0.1  # of an answer's token, where a prompt's is 1


def separating_weights(
    tiny: GuardedTiny, layers: tuple[int, ...] = PROBE_LAYERS, *, for_recalibration: bool = False
) -> tuple[NDArray[np.float32], float]:
    """Weights and offset of a linear probe whose logits are about 2 on harmful ones, else −2.

    for_recalibration: it knows the answers by heart, too, that a recalibration decides on.
    """
    requests = spread(load_requests(splits=("calibration",), labels=tuple(COUNTS)), COUNTS)
    rows, signs, sizes = list[NDArray[np.float32]](), list[float](), list[float]()
    with closing(open_runtime(tiny.settings(None, n_ctx=2048), layers=layers)) as runtime:

        def read(request, n_tokens: int) -> None:
            items = question_items(request.text, template=runtime.template, model=runtime.model)
            states = decode_answer(runtime, items, n_tokens=n_tokens).states
            rows.extend(states)
            signs.extend([1.0 if request.label == "harmful" else -1.0] * len(states))
            sizes.extend([1.0] + [_TOKEN_WEIGHT] * (len(states) - 1))

        for request in requests:
            read(request, 0)
        for request in recalibration_requests() if for_recalibration else ():
            read(request, N_TOKENS)
    states, wanted = np.array(rows, dtype=np.float64), 2 * np.array(signs)
    weight = np.array(sizes)[:, np.newaxis]
    mean = (weight * states).sum(axis=0) / weight.sum()
    deviation = states.std(axis=0)
    centred = weight * (states - mean) / deviation
    ridge = _RIDGE * len(states) * np.eye(states.shape[1])
    found = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (weight[:, 0] * wanted))
    weights = found / deviation
    return weights.astype(np.float32), float(-mean @ weights)
