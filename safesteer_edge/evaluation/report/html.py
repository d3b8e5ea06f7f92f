"""A report as one HTML file: no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from safesteer_edge.evaluation.report.counts import count_lines
from safesteer_edge.evaluation.report.examples import Example
from safesteer_edge.evaluation.report.page import escaped, html_figure, html_page, html_table
from safesteer_edge.evaluation.report.plots import steps_plot
from safesteer_edge.evaluation.report.table import conditions
from safesteer_edge.evaluation.report.tables import report_tables
from safesteer_edge.evaluation.report.trade_offs import trade_off_figures

Json = dict[str, Any]


def report_to_html(report: Json, examples: Sequence[Example]) -> str:
    """The whole page."""
    facts = report["facts"]
    judge = report["judges"][0]
    title = f"Evaluation of {facts['model']} {facts['quantization']}"
    return html_page(
        title,
        [
            *(f"<p>{escaped(line)}</p>" for line in count_lines(report)),
            *trade_off_figures(report),
            html_figure(
                "Separation by decoding step", steps_plot(report), conditions(report, judge)
            ),
            *(html_table(table) for table in report_tables(report)),
            _examples(examples),
            _facts(facts),
        ],
    )


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    blocks = [
        f"<details><summary>{escaped(e.suite)} / {escaped(e.attack)} ({escaped(e.kind)})</summary>"
        f"<pre>{escaped(e.request)}</pre>"
        + "".join(
            f"<p>{escaped(name)}</p><pre>{escaped(answer)}</pre>"
            for name, answer in e.answers.items()
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
        f"<pre>{escaped(shown)}</pre></details>"
    )
