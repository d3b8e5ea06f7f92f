"""Where a cloud of states lies, whatever a few wrong ones say: the geometric median."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAX_ITERATIONS: Final = 64
_TOLERANCE: Final = 1e-4
_MAX_MEDIAN_ROWS: Final = 2000
_FAR: Final = 4.0


def geometric_median(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """The point with the least summed distance to the rows, (n, n_features), by Weiszfeld's steps.

    Half of the rows would have to lie to move it far; a mean follows a single one.
    """
    points = rows.astype(np.float64)
    centre = np.median(points, axis=0)
    for _ in range(_MAX_ITERATIONS):
        distances = np.linalg.norm(points - centre, axis=1)
        weights = 1.0 / np.maximum(distances, 1e-9)
        moved = (weights / weights.sum()) @ points
        step = float(np.linalg.norm(moved - centre))
        centre = moved
        if step <= _TOLERANCE * float(np.median(distances)):
            break
    return centre


def typical_rows(rows: NDArray[np.floating], seed: int = 0) -> NDArray[np.bool_]:
    """Which rows lie within a few median distances of the geometric median, bool (n,).

    The median itself is taken of at most a few thousand of the rows, drawn.
    """
    drawn = rows
    if len(rows) > _MAX_MEDIAN_ROWS:
        drawn = rows[np.random.default_rng(seed).choice(len(rows), _MAX_MEDIAN_ROWS, replace=False)]
    centre = geometric_median(drawn).astype(rows.dtype)
    distances = np.linalg.norm(rows - centre, axis=1)
    return distances <= _FAR * np.median(distances)
