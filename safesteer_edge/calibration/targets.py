"""How many false alarms a calibration allows, and what it wants in return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class FalseAlarmTargets:
    """Chances that are allowed, and what is wanted in return.

    touched: of any score above τ in an ordinary answer; borderline_touched: in one to a borderline
    request. ordinary_refused, borderline_refused: of a refusal of such an answer, by either rule.
    An ordinary answer stays what it was but for 1 %: half of that for either.
    residual: the share of complying answers to harmful requests that need not be refused.
    kept: the mean chance that is left to a harmful answer's token above τ.
    """

    touched: float = 0.005
    ordinary_refused: float = 0.005
    borderline_refused: float = 0.03
    borderline_touched: float = 0.1
    residual: float = 0.1
    kept: float = 0.05


def targets_of(figures: Mapping[str, object]) -> FalseAlarmTargets:
    """The false alarms that a bundle was calibrated for, where its figures say so."""
    said = figures.get("targets")
    known: dict[str, Any] = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    usable = {
        field.name: float(known[field.name])
        for field in fields(FalseAlarmTargets)
        if isinstance(known.get(field.name), float) and 0 < known[field.name] < 1
    }
    return FalseAlarmTargets(**usable)
