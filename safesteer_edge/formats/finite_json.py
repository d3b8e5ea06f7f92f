"""Numbers that JSON does not have, and that Python's reader lets through unless told not to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, cast


def load_finite(
    text: str | bytes,
    *,
    pairs_hook: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> object:
    """As `json.loads`; raises ValueError for NaN and infinities, and for what becomes infinite."""
    return json.loads(
        text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=pairs_hook
    )


def without_nan(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: without_nan(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
