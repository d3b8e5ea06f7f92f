"""Writing a run's report into its folder: report.json, report.html, report.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safesteer_edge.evaluation.plan import ROWS
from safesteer_edge.evaluation.report_content import count_lines, read_run
from safesteer_edge.evaluation.report_tables import report_tables
from safesteer_edge.evaluation.rows import EvalRow, read_journal
from safesteer_edge.evaluation.trade_off import steps_plot, trade_off_figures
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.report.page import (
    Table,
    conditions,
    escaped,
    html_figure,
    html_page,
    html_table,
)

# -- some answers for a report, masked: what an attack got out of a model is not for skimming ------

_SHOWN_CHARACTERS: Final = 24
_N_EXAMPLES: Final = 12
_MASK: Final = "█"
_COMPARED: Final = ("off", "safesteer")


@dataclass(frozen=True, slots=True)
class Example:
    """One case and its answers by defence."""

    suite: str
    attack: str
    kind: str
    request: str
    answers: dict[str, str]


def choose_examples(rows: Sequence[EvalRow], *, with_texts: bool) -> list[Example]:
    """Cases whose answers differ, spread over suites. Harmful ones are masked but for a start."""
    by_case: dict[tuple[str, str], dict[str, EvalRow]] = {}
    for row in rows:
        if row.status == "ok" and row.defence in _COMPARED:
            by_case.setdefault((row.suite, row.case_id), {})[row.defence] = row
    differing = [
        answers
        for answers in by_case.values()
        if len(answers) == len(_COMPARED) and len({r.answer for r in answers.values()}) > 1
    ]
    per_suite: dict[str, int] = {}
    examples: list[Example] = []
    for answers in differing:
        row = answers[_COMPARED[0]]
        n_before = per_suite.get(row.suite, 0)
        if n_before >= 3 or len(examples) >= _N_EXAMPLES:
            continue
        per_suite[row.suite] = n_before + 1
        is_masked = row.kind == "harmful" and not with_texts
        show = mask if is_masked else str
        examples.append(
            Example(
                row.suite,
                row.attack,
                row.kind,
                show(row.request),
                {name: show(each.answer) for name, each in answers.items()},
            )
        )
    return examples


def mask(text: str) -> str:
    """The first characters of a text, and every later letter or digit hidden."""
    start, rest = text[:_SHOWN_CHARACTERS], text[_SHOWN_CHARACTERS:]
    return start + "".join(_MASK if character.isalnum() else character for character in rest)


# -- A report as one HTML file: no script, nothing loaded from anywhere ----------------------------

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


# -- A report's tables as Markdown, for a README or docs -------------------------------------------


def report_to_markdown(report: Json) -> str:
    """The tables, each with its conditions, and what the run was made with."""
    facts = report["facts"]
    machine = facts["machine"]
    blocks = [
        f"# Evaluation of {facts['model']} {facts['quantization']}",
        "\n\n".join(_cell(line) for line in count_lines(report)),
        *(_table(table) for table in report_tables(report)),
        "## Made with",
        f"safesteer-edge {facts['version']}; model tensors {facts['tensor_table_sha256'][:16]}; "
        f"probe {str(facts['probe_sha256'])[:16]}; vector {str(facts['vector_sha256'])[:16]}; "
        f"cases {facts['cases_sha256'][:16]}; {machine['cpu']}, {machine['n_cores']} cores, "
        f"{machine['operating_system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    lines = [
        f"## {table.title}",
        "",
        _cell(table.note),
        "",
        _line(table.header),
        _line(["---"] * len(table.header)),
        *(_line(row) for row in table.rows),
    ]
    return "\n".join(lines)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write_reports(folder: Path, *, with_texts: bool = False) -> dict[str, Any]:
    """Write all three from the folder's rows; returns the report.

    with_texts: harmful requests and answers stand in the HTML as they are, folded away.
    Raises InputError for a folder that holds no run.
    """
    report = without_nan(read_run(folder))
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    report["facts"]["cases_sha256"] = plan["cases_sha256"]
    rows = tuple(read_journal(folder / ROWS, EvalRow))
    texts = {
        "report.json": json.dumps(report, ensure_ascii=False, indent=1) + "\n",
        "report.html": report_to_html(report, choose_examples(rows, with_texts=with_texts)),
        "report.md": report_to_markdown(report),
    }
    for name, text in texts.items():
        with atomic_write(folder / name, "w") as stream:
            stream.write(text)
    return report
