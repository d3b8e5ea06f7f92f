"""A report as one HTML file: no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.evaluation.report.examples import Example
from safesteer_edge.evaluation.report.plots import steps_plot, trade_off_plot
from safesteer_edge.evaluation.report.table import Table
from safesteer_edge.evaluation.report.tables import report_tables

Json = dict[str, Any]
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


def report_to_html(report: Json, examples: Sequence[Example]) -> str:
    """The whole page."""
    facts = report["facts"]
    title = f"Evaluation of {facts['model']} {facts['quantization']}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        _counts(report),
        _figure("Safety against helpfulness", trade_off_plot(report)),
        _figure("Separation by decoding step", steps_plot(report)),
        *(_table(table) for table in report_tables(report)),
        _examples(examples),
        _facts(facts),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _counts(report: Json) -> str:
    counts, facts = report["counts"], report["facts"]
    lines = [
        f"{counts['answered']} of {counts['planned']} answers; {counts['errors']} errors, "
        f"{counts['crashed']} crashes, {counts['unreadable_rows']} unreadable rows of files. None "
        "of these counts as an answer."
    ]
    lines += [f"{r['n']} × {r['status']}: {r['error']}" for r in counts["reasons"]]
    lines += [
        f"unreadable: {row['suite']}, {row['where']}: {row['problem']}"
        for row in counts["unreadable_examples"]
    ]
    for judge, failed in counts["judge_errors"].items():
        if failed["n"]:
            errors = "; ".join(f"{n} × {error}" for error, n in failed["errors"].items())
            lines.append(f"judge {judge} gave no verdict on {failed['n']} answers: {errors}")
    lines += [f"not run: {name}, {why}" for name, why in facts["skipped_suites"].items()]
    return "".join(f"<p>{_text(line)}</p>" for line in lines)


def _figure(title: str, svg: str) -> str:
    return f"<h2>{_text(title)}</h2><figure>{svg}</figure>" if svg else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.header)
    body = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f'<h2>{_text(table.title)}</h2><p class="note">{_text(table.note)}</p>'
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
    )


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    blocks = [
        f"<details><summary>{_text(e.suite)} / {_text(e.attack)} ({_text(e.kind)})</summary>"
        f"<pre>{_text(e.request)}</pre>"
        + "".join(
            f"<p>{_text(name)}</p><pre>{_text(answer)}</pre>" for name, answer in e.answers.items()
        )
        + "</details>"
        for e in examples
    ]
    return (
        '<h2>Examples</h2><p class="note">where the defence changed the answer; harmful requests '
        "and the answers to them are masked unless the report was asked for with texts</p>"
        + "".join(blocks)
    )


def _facts(facts: Json) -> str:
    shown = json.dumps(facts, indent=1, ensure_ascii=False)
    return (
        "<h2>Made with</h2><details><summary>versions, seeds, hashes, hardware</summary>"
        f"<pre>{_text(shown)}</pre></details>"
    )


def _text(value: str) -> str:
    return escape(_plain(value))


def _plain(value: str) -> str:
    return "\n".join(strip_control_characters(line) for line in value.split("\n"))
