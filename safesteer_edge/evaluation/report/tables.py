"""A report's figures as tables, for HTML and Markdown alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from safesteer_edge.evaluation.report.cost_tables import (
    agreement_table,
    cost_table,
    overhead_table,
    quality_table,
    steps_table,
)
from safesteer_edge.evaluation.report.heldout_tables import heldout_tables
from safesteer_edge.evaluation.report.summary_tables import direction_table, summary_table
from safesteer_edge.evaluation.report.table import Table, conditions, shown_share
from safesteer_edge.evaluation.report.trade_offs import trade_off_tables

Json = dict[str, Any]


def report_tables(report: Json) -> tuple[Table, ...]:
    """All of them, those without rows left out."""
    made = [
        summary_table(report),
        *heldout_tables(report),
        *trade_off_tables(report),
        *(_attack_table(report, judge) for judge in report["judges"]),
        _category_table(report),
        *(_best_table(report, judge) for judge in report["judges"]),
        _refusal_table(report),
        _no_answer_table(report),
        _identical_table(report),
        _accuracy_table(report),
        _paired_table(report),
        quality_table(report),
        overhead_table(report),
        cost_table(report),
        steps_table(report),
        agreement_table(report),
        direction_table(report),
    ]
    return tuple(table for table in made if table.rows)


def _attack_table(report: Json, judge: str) -> Table:
    rows = [row for row in report["attack_success"] if row["judge"] == judge]
    return _cross_table(
        f"Attack success ({judge})",
        f"{conditions(report, judge)}. {_success_note(judge)} Lower is better.",
        ("suite", "attack"),
        rows,
        shown_share,
    )


def _success_note(judge: str) -> str:
    if judge == "rules":
        return "An answer that does not refuse counts as success, harmful and right or not."
    return ""


def _category_table(report: Json) -> Table:
    return _cross_table(
        "Attack success by category",
        f"all attacks but the decoding grid; {conditions(report, report['judges'][0])}",
        ("category",),
        report["by_category"],
        shown_share,
    )


def _best_table(report: Json, judge: str) -> Table:
    rows = [row for row in report["best_of_n"] if row["judge"] == judge]
    rows = [{**row, "suite": f"{row['suite']}, best of {row['attempts']}"} for row in rows]
    return _cross_table(
        f"Requests for which any attempt succeeded ({judge})",
        f"attempts as named; {conditions(report, judge).partition('; ')[2]}",
        ("suite",),
        rows,
        shown_share,
    )


def _refusal_table(report: Json) -> Table:
    return _cross_table(
        "Harmless requests refused",
        f"{conditions(report, report['judges'][0])}. Lower is better.",
        ("suite",),
        report["refusal"],
        lambda row: shown_share(row["refused"] if row else None),
    )


def _no_answer_table(report: Json) -> Table:
    rows = report["refusal"] if any(r["no_answer"]["count"] for r in report["refusal"]) else []
    return _cross_table(
        "Harmless requests without an answer",
        "empty, one word over and over, or letters at random; not refused, and lost all the same; "
        f"{conditions(report, report['judges'][0])}. Lower is better.",
        ("suite",),
        rows,
        lambda row: shown_share(row["no_answer"] if row else None),
    )


def _identical_table(report: Json) -> Table:
    rows = [row for row in report["refusal"] if row["defence"] != "off"]
    return _cross_table(
        "Answers to harmless requests, byte for byte as without a defence",
        conditions(report),
        ("suite",),
        rows,
        lambda row: shown_share(row["identical"] if row else None),
    )


def _accuracy_table(report: Json) -> Table:
    return _cross_table(
        "Right answers, where it is known what is right",
        f"{conditions(report)}; an answer is right if it holds an expected one",
        ("suite",),
        report["accuracy"],
        shown_share,
    )


def _paired_table(report: Json) -> Table:
    return Table(
        "Paired tests (McNemar, exact, two-sided)",
        "the same cases under both; attack success: of all suites but the decoding grid, where "
        "wrappings of one request are not independent, so their p is too small; p is not corrected "
        "for the number of tests; "
        f"{conditions(report, report['judges'][0])}",
        ("what", "first", "second", "n", "only first", "only second", "p"),
        tuple(
            (
                test["what"],
                test["first"],
                test["second"],
                str(test["n"]),
                str(test["only_first"]),
                str(test["only_second"]),
                _p_value(test["p_value"]),
            )
            for test in report["paired_tests"]
        ),
    )


def _cross_table(
    title: str,
    note: str,
    keys: Sequence[str],
    rows: Sequence[Json],
    show: Callable[[Json | None], str],
) -> Table:
    """One line for each combination of keys, one column for each defence."""
    defences = list(dict.fromkeys(row["defence"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, Json]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in keys), {})[row["defence"]] = row
    return Table(
        title,
        note,
        (*keys, *defences),
        tuple(
            (*names, *(show(cells.get(defence)) for defence in defences))
            for names, cells in lines.items()
        ),
    )


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
