"""What changed between two reports: shares whose intervals do not meet, and all differences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.report_content import FORMAT
from safesteer_edge.evaluation.trade_off import share_json
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.metrics.statistics import Share

Json = dict[str, Any]
_FACTS: Final = (
    "version",
    "model",
    "quantization",
    "tensor_table_sha256",
    "mmproj",
    "bundle",
    "probe_sha256",
    "vector_sha256",
    "policy",
    "sampling",
    "max_tokens",
    "cases_sha256",
)
_STAR: Final = "* the 95 % intervals (of speeds: the ranges over repeats) do not meet"


def read_report(path: Path) -> Json:
    """A report.json. Raises InputError for anything else."""
    try:
        value = load_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read report {str(path)!r}: {error}") from error
    if not isinstance(value, dict) or not {"format", "facts", "attack_success"} <= set(value):
        raise InputError(f"{str(path)!r} is not a report; give the report.json of an evaluation")
    report = cast("Json", value)
    if report["format"] != FORMAT:
        raise InputError(
            f"{str(path)!r} has report format {report['format']!r}; expected {FORMAT}: give its "
            "folder to 'safesteer-edge eval -o' again, which writes the report anew"
        )
    return report


def compare_reports(first: Json, second: Json) -> str:
    """Text: other facts, then every share that differs; `*` where the intervals do not meet."""
    lines: list[str] = []
    for name in _FACTS:
        one, other = first["facts"].get(name), second["facts"].get(name)
        lines += _changes(name, one, other)
    before, after = dict(_shares(first)), dict(_shares(second))
    for key, old in before.items():
        new = after.get(key)
        if new is None:
            lines.append(f"  {' / '.join(key)}: only in the first")
        elif (old["count"], old["n"]) != (new["count"], new["n"]):
            apart = old["low"] > new["high"] or new["low"] > old["high"]
            lines.append(f"{'*' if apart else ' '} {' / '.join(key)}: {_both(old, new)}")
    lines += [f"  {' / '.join(key)}: only in the second" for key in after if key not in before]
    one, other = _speeds(first), _speeds(second)
    for name, old in one.items():
        new = other.get(name)
        if new is not None and old != new:
            apart = old["low"] > new["high"] or new["low"] > old["high"]
            shown = " → ".join(
                f"{x['median']:.3f}× ({x['low']:.3f}–{x['high']:.3f})" for x in (old, new)
            )
            lines.append(f"{'*' if apart else ' '} {name}: {shown}")
    if not lines:
        return "no difference\n"
    return (
        "\n".join(
            [*lines, "", "* the 95 % intervals (of speeds: the ranges over repeats) do not meet"]
        )
        + "\n"
    )


def _changes(name: str, one: object, other: object) -> Iterator[str]:
    """A fact that changed; of one with parts, the parts that did."""
    if isinstance(one, dict) and isinstance(other, dict):
        old, new = cast("Json", one), cast("Json", other)
        for key in dict.fromkeys((*old, *new)):
            yield from _changes(f"{name}.{key}", old.get(key), new.get(key))
    elif one != other:
        yield f"{name}: {_short(one)} → {_short(other)}"


def _speeds(report: Json) -> dict[str, Json]:
    ratios = report["overheads"].get("ratios", ()) if report["overheads"] else ()
    return {
        f"speed, {row['kind']}: {row['variant']} / {row['other']}": row["speed"]
        for row in ratios
        if row["speed"] is not None
    }


def _shares(report: Json) -> Iterator[tuple[tuple[str, ...], Json]]:
    for row in report["attack_success"]:
        key = ("attack success", row["suite"], row["attack"], row["defence"], row["judge"])
        yield key, row
    for row in report["refusal"]:
        for figure in ("refused", "identical"):
            yield (figure, row["suite"], row["defence"]), row[figure]
    for row in report["accuracy"]:
        yield ("right", row["suite"], row["defence"]), row
    for effect in report.get("heldout", {}).get("guard", ()):  # older reports have none
        for figure in ("off_answered", "guarded_answered", "identical"):
            share = Share(effect[figure]["count"], effect[figure]["n"])
            yield ("held out", figure, effect["label"]), share_json(share)


def _both(old: Json, new: Json) -> str:
    return f"{_share(old)} → {_share(new)}"


def _share(value: Json) -> str:
    if not value["n"]:
        return "none"
    return f"{value['count']}/{value['n']} ({100 * value['share']:.0f} %)"


def _speed(value: Json) -> str:
    return f"{value['median']:.3f}× ({value['low']:.3f}–{value['high']:.3f})"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:79]}…"
