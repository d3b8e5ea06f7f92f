"""Which layers a calibration tries, for a model of any depth."""

from __future__ import annotations

# Shares of the depth. Early blocks read words and the last ones choose the next token; what an
# answer means lies between: of SmolLM2's 30 blocks, 18 was the best single one.
_MIDDLE = (0.6,)
_THREE = (0.47, 0.6, 0.8)
_MANY = (0.4, 0.47, 0.53, 0.6, 0.67, 0.73, 0.8, 0.87, 0.93)


def layer_sets_for(n_layer: int) -> tuple[tuple[int, ...], ...]:
    """Sets of block outputs to try, from one block to nine joined; no set twice.

    Leaves the last block out: its output is before the final norm, and the cheap route to hidden
    states does not reach it.
    """
    sets = [_layers(shares, n_layer) for shares in (_MIDDLE, _THREE, _MANY)]
    return tuple(dict.fromkeys(sets))


def _layers(shares: tuple[float, ...], n_layer: int) -> tuple[int, ...]:
    last = max(0, n_layer - 2)
    return tuple(sorted({min(last, round(share * n_layer)) for share in shares}))
