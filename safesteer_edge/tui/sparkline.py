"""Scores as a line of block characters: height says what colour says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values, one character each; of a longer row, the largest of each group.

    values in [0, 1]; the lowest block is 0.
    """
    if width < 1 or not values:
        return ""
    return "".join(_BLOCKS[min(7, int(value * 8))] for value in grouped(values, width))


def grouped(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: each the largest of as many neighbours as it takes."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [max(values[low:high]) for low, high in pairwise(edges)]
