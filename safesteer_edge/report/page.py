"""What any report's HTML page is made of: no script, nothing loaded from anywhere, text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from safesteer_edge.formats.display_text import strip_control_characters

# -- A table, and how figures are written in one ---------------------------------------------------

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


_STYLE: Final = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0; font-size: 13px }
th, td { border: 1px solid #8885; padding: .25rem .5rem; text-align: left; white-space: nowrap }
.wide { overflow-x: auto }
.note { color: #777; margin: 0 }
figure { max-width: 45rem; margin: 1rem 0 }
pre { white-space: pre-wrap; background: #8881; padding: .5rem }
summary { cursor: pointer }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """The whole page. parts: HTML below the title; empty ones are left out."""
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escaped(title)}</h1>",
        *parts,
        "</body></html>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def html_figure(title: str, svg: str, note: str = "") -> str:
    """A plot under its title; "" without one."""
    below = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f"<h2>{escaped(title)}</h2>{below}<figure>{svg}</figure>" if svg else ""


def html_table(table: Table) -> str:
    """A table under its title and conditions."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f'<h2>{escaped(table.title)}</h2><p class="note">{escaped(table.note)}</p>'
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
    )


def escaped(value: str) -> str:
    """The text, safe inside an element or a quoted attribute; control characters go."""
    return escape("\n".join(strip_control_characters(line) for line in value.split("\n")))
