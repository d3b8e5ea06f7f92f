"""A report's tables as Markdown, for a README or docs."""

from __future__ import annotations

from typing import Any

from safesteer_edge.evaluation.report.counts import count_lines
from safesteer_edge.evaluation.report.table import Table
from safesteer_edge.evaluation.report.tables import report_tables

Json = dict[str, Any]


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
