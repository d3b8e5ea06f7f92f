"""A prompt beside the main sequence, evaluated for the state at its end and then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import MAIN_SEQUENCE, NativeContext
from safesteer_edge.engine.hidden_states import HiddenStateRoute
from safesteer_edge.engine.main_sequence import PrefillCancelledError, read_states

_SIDE_SEQUENCE = MAIN_SEQUENCE + 1  # the first candidate's, between two steps


def read_state_aside(
    context: NativeContext,
    route: HiddenStateRoute | None,
    token_ids: Sequence[int],
    cancelled: Callable[[], bool],
) -> NDArray[np.float32]:
    """The state at the last of these tokens: float32 (n_features,).

    As a prompt of the main sequence is evaluated: the last token goes alone, as a decoding step.
    Raises PromptTooLongError, EngineError, PrefillCancelledError.
    """
    context.set_control_vector(None)
    if route is not None:
        route.before_prefill()
    n_prefilled = len(token_ids) - 1
    try:
        for start in range(0, n_prefilled, context.n_batch):
            if cancelled():
                raise PrefillCancelledError("stopped while the prompt was being read")
            _decode(context, token_ids[start : min(start + context.n_batch, n_prefilled)], start)
        if route is not None:
            route.before_answer()
        _decode(context, token_ids[n_prefilled:], n_prefilled)
        return read_states(route, 1)[0]
    finally:
        context.remove_from_sequence(_SIDE_SEQUENCE)


def _decode(context: NativeContext, token_ids: Sequence[int], position: int) -> None:
    positions = range(position, position + len(token_ids))
    sequences = [_SIDE_SEQUENCE] * len(token_ids)
    context.decode(token_ids, positions, sequences, all_outputs=False)
