"""Whether llama.cpp adds each direction where the bundle says: measured in the residual stream.

One direction at a time is switched on for the last token of a prompt, and the outputs of all
blocks are read back through the hidden-state route. What changed at the direction's own block must
be the direction, and nothing may have changed below it. The prompt before that token is evaluated
without the vector, so both runs see the same cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.session.runtime import Runtime

MAX_SHIFT_ERROR: Final = 1e-3
"""Of a shift, relative to the direction's largest number."""

# A sum of float32 is rounded to 2⁻²⁴ of its size: reading a small shift back as the difference of
# two large states cannot be better than this share of them.
_FLOAT32_ROUNDING = 2.0**-23


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
    sampler = SamplerChain(SamplingSettings(temperature=0, top_k=1), n_vocab=runtime.model.n_vocab)
    try:
        state = runtime.engine.prefill(
            [TokenRun(tuple(token_ids))], sampler, control_vector=directions
        ).last_state
    finally:
        sampler.close()
    return state.astype(np.float64).reshape(runtime.model.n_layer, runtime.model.n_embd)
