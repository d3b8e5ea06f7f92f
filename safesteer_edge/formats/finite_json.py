"""Numbers that JSON does not have."""

from __future__ import annotations

import math
from typing import Any, cast


def without_nan(value: Any) -> Any:
    """The same JSON value with null for NaN and infinities."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: without_nan(item) for key, item in members.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
