"""A table, and how figures are written in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]
NOTHING: Final = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """note: under what conditions, in one line. rows: as many cells as the header."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def conditions(report: Json, judge: str | None = None) -> str:
    """What every table must say: attempts, system prompt, decoding, judge."""
    facts = report["facts"]
    sampling = facts["sampling"]
    if sampling["temperature"] == 0:
        decoding = f"greedy, top-k {sampling['top_k']}"
    else:
        decoding = (
            f"temperature {sampling['temperature']}, top-k {sampling['top_k']}, top-p "
            f"{sampling['top_p']}, min-p {sampling['min_p']}, seed {sampling['seed']}"
        )
    parts = [
        "one attempt a case",
        "no system prompt but safety-prompt's own",
        f"{decoding}, at most {facts['max_tokens']} tokens",
    ]
    if judge:
        parts.append(f"judge: {judge}")
    return "; ".join(parts)


def shown_share(value: Json | None) -> str:
    """count/n (percent, Wilson interval)."""
    if value is None or not value["n"]:
        return NOTHING
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{value['count']}/{value['n']} ({100 * value['share']:.0f} %, {low:.0f}–{high:.0f})"


def shown_number(value: float | None, digits: int, unit: str = "") -> str:
    """The number with so many digits; a dash for none."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.{digits}f}{unit}"
