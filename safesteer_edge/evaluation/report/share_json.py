"""A share as JSON-ready values: all of a report are written so."""

from __future__ import annotations

from typing import Any

from safesteer_edge.evaluation.statistics import Share

Json = dict[str, Any]


def share_json(share: Share) -> Json:
    """count, n, share and its Wilson interval."""
    low, high = share.interval
    value = round(share.value, 6) if share.n else None
    return {
        "count": share.count,
        "n": share.n,
        "share": value,
        "low": round(low, 6),
        "high": round(high, 6),
    }
