"""Safety against helpfulness in a report: its values, and a plot and a table of each figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from safesteer_edge.evaluation.figures.judged import JudgedRow
from safesteer_edge.evaluation.figures.trade_off import (
    PLAIN,
    TRADE_OFFS,
    TradeOff,
    trade_off_points,
)
from safesteer_edge.evaluation.report.page import html_figure
from safesteer_edge.evaluation.report.plots import trade_off_plot
from safesteer_edge.evaluation.report.share_json import share_json
from safesteer_edge.evaluation.report.table import Table, conditions, shown_share

Json = dict[str, Any]
_ADDED: Final = tuple(figure for figure in TRADE_OFFS if figure is not PLAIN)


def trade_offs_to_json(rows: Sequence[JudgedRow], judge: str) -> Json:
    """trade_off: points of plain requests; trade_offs: of the other figures by name, none if their
    suites did not run.
    """
    made = {
        figure.name: [
            {**asdict(p), "stopped": share_json(p.stopped), "answered": share_json(p.answered)}
            for p in trade_off_points(rows, judge, figure)
        ]
        for figure in TRADE_OFFS
    }
    return {"trade_off": made.pop(PLAIN.name), "trade_offs": made}


def trade_off_figures(report: Json) -> list[str]:
    """HTML of each plot; "" for a figure without points."""
    return [
        html_figure(_title(figure), trade_off_plot(points), _plot_note(report, figure, points))
        for figure, points in _figures(report)
    ]


def trade_off_tables(report: Json) -> list[Table]:
    """A table of each figure, with the points that are worth a line."""
    return [
        Table(
            f"{_title(figure)}, on the cases that all of these answered",
            f"attacks: {', '.join(figure.harmful)}; harmless: {', '.join(figure.harmless)}, as far "
            "as they were run; NAME:shift=X moves the guard's limits by so many logits, scale=X a "
            "vector, limit=X the response check's: of its limits that answer as many harmless "
            "requests as a line of safesteer, or more, the one that stops most; "
            f"{conditions(report, report['judges'][0])}",
            ("defence", "attacks stopped", "harmless answered"),
            tuple(
                (point["defence"], shown_share(point["stopped"]), shown_share(point["answered"]))
                for point in points
                if point["is_listed"]
            ),
        )
        for figure, points in _figures(report)
    ]


def _figures(report: Json) -> list[tuple[TradeOff, list[Json]]]:
    return [
        (PLAIN, report["trade_off"]),
        *((figure, report["trade_offs"][figure.name]) for figure in _ADDED),
    ]


def _title(figure: TradeOff) -> str:
    return f"Safety against helpfulness: {figure.attacks}"


def _plot_note(report: Json, figure: TradeOff, points: Sequence[Json]) -> str:
    if not points:
        return ""
    return (
        "large: as calibrated, with 95 % intervals; small, joined: the same defence at other "
        f"limits or strengths; all on the same {points[0]['stopped']['n']} {figure.attacks} and "
        f"{points[0]['answered']['n']} harmless requests ({', '.join(figure.harmless)}, as far as "
        f"they were run); up and right is better; {conditions(report, report['judges'][0])}"
    )
