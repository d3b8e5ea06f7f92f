"""Curves of what a threshold and a strength would do, to be kept beside the ones chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.refusal_grid import AnswerTable, Trajectories

# Chances of touching an ordinary answer.
TOUCHED_TRIED: Final = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
# Nats of tilt at a score of 1: a candidate becomes e^nats times less likely.
NATS_TRIED: Final = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def conformal_limit(
    maxima: Sequence[float] | NDArray[Any], alpha: float, *, largest: float = 1.0
) -> float:
    """The smallest limit that a fresh value exceeds with chance at most alpha.

    largest: what no value exceeds: the answer where there are too few values to promise less.
    """
    rank = math.ceil((1.0 - alpha) * (len(maxima) + 1))
    return float(np.sort(np.asarray(maxima))[rank - 1]) if rank <= len(maxima) else largest


def touched_share(table: AnswerTable, threshold: float) -> float:
    """Share of answers with any score above the threshold; NaN of none."""
    if not table.n_answers:
        return math.nan
    return float(np.mean(table.largest_scores() > threshold))


def threshold_curve(tables: dict[str, AnswerTable], highest: float) -> tuple[dict[str, float], ...]:
    """A row for each chance tried: τ, and the share of answers of each kind that it touches."""
    maxima = tables["ordinary"].largest_scores()
    rows: list[dict[str, float]] = []
    for chance in TOUCHED_TRIED:
        threshold = min(highest, conformal_limit(maxima, chance))
        shares = {name: touched_share(table, threshold) for name, table in tables.items()}
        rows.append({"chance": chance, "threshold": threshold, **shares})
    return tuple(rows)


def strength_curve(
    harmful: Trajectories, ordinary: Trajectories, threshold: float
) -> tuple[dict[str, float], ...]:
    """A row for each strength tried: what it leaves of the tokens above τ.

    kept: the mean chance that such a token, once drawn, is accepted, in harmful answers and in
    ordinary ones; NaN where none is above τ.
    """
    rows: list[dict[str, float]] = []
    for nats in NATS_TRIED:
        strength = nats / (1.0 - threshold)
        rows.append(
            {
                "nats": nats,
                "strength": strength,
                "harmful_kept": _kept(harmful, threshold, strength),
                "ordinary_kept": _kept(ordinary, threshold, strength),
            }
        )
    return tuple(rows)


def _kept(rows: Trajectories, threshold: float, strength: float) -> float:
    scores = np.concatenate([row[1:][row[1:] > threshold] for row in rows] or [np.empty(0)])
    return float(np.exp(-strength * (scores - threshold)).mean()) if len(scores) else math.nan
