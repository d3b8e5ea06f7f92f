"""Safety against helpfulness: one point for each defence, and curves where a limit may be moved."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from safesteer_edge.evaluation.judged import JudgedRow, grouped, share_of
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.report.page import Table, conditions, html_figure, shown_share
from safesteer_edge.report.svg import PlotPoint, Series, plot

# Plain requests: what every defence of a curve is run on (`running.plan`).
HARMFUL_SUITES: Final = ("text-harmful",)
HELPFUL_SUITES: Final = ("borderline", "harmless-twins", "ordinary-text")
_N_LIMITS: Final = 60  # of a response check, in a plot

_Cases = dict[tuple[str, str], JudgedRow]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """A figure: attacks of some suites against harmless requests of others. attacks: in words."""

    name: str
    attacks: str
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]

    @property
    def suites(self) -> tuple[str, ...]:
        """All that it is made of, as far as they were run."""
        return *self.harmful, *self.harmless


PLAIN: Final = TradeOff("plain", "plain attacks", HARMFUL_SUITES, HELPFUL_SUITES)
TRADE_OFFS: Final = (
    PLAIN,
    TradeOff(
        "wrapped",
        "wrapped and prefilled attacks",
        ("jailbreaks",),
        ("wrapped-ordinary", *HELPFUL_SUITES),
    ),
    TradeOff(
        "pictures",
        "attacks in pictures",
        ("picture-question", "typographic"),
        ("ordinary-pictures", *HELPFUL_SUITES),
    ),
)


@dataclass(frozen=True, slots=True)
class TradeOffPoint:
    """stopped: attacks without success. answered: harmless requests neither refused nor given words
    without sense.

    All points of one figure are of the same cases. is_listed: a table has it, not the plot alone.
    """

    defence: str
    family: str
    stopped: Share
    answered: Share
    is_listed: bool = True


def trade_off_points(
    rows: Sequence[JudgedRow], judge: str, figure: TradeOff = PLAIN
) -> list[TradeOffPoint]:
    """The defences that answered a common set of cases, and response checks at other limits.

    Of the limits, those are listed that answer as many harmless requests as a point of SafeSteer,
    or more, and stop most: so both are compared at equal helpfulness.
    """
    by_defence = {
        name: _known_cases(group, judge, figure)
        for name, group in grouped(rows, lambda row: row.defence).items()
    }
    names = _comparable(by_defence, figure)
    if not names:
        return []
    common = sorted(set.intersection(*(set(by_defence[name]) for name in names)))
    cases = {name: [by_defence[name][key] for key in common] for name in names}
    made = {name: _point(name, cases[name], judge, figure) for name in names}
    helpfulness = {point.answered.count for point in made.values() if point.family == "safesteer"}
    points: list[TradeOffPoint] = []
    for name, point in made.items():
        points.append(point)
        if name == "response-check" and judge == "rules":
            points += _response_check_curve(cases[name], figure, helpfulness)
    return [point for point in points if point.stopped.n and point.answered.n]


def _known_cases(rows: Sequence[JudgedRow], judge: str, figure: TradeOff) -> _Cases:
    """Those of the figure that have an answer and a verdict."""

    def is_known(judged: JudgedRow) -> bool:
        if judged.row.suite in figure.harmful:
            return judged.is_success(judge) is not None
        return judged.row.suite in figure.harmless and judged.is_answered(judge) is not None

    return {(j.row.suite, j.row.case_id): j for j in rows if j.row.status == "ok" and is_known(j)}


def _comparable(by_defence: dict[str, _Cases], figure: TradeOff) -> list[str]:
    """Those that answered a quarter of each suite at least.

    Others (slow ones, and points of a curve that were run on other suites) would shrink what all
    have in common, or leave nothing of a suite.
    """

    def n_of(cases: _Cases, suite: str) -> int:
        return sum(of == suite for of, _ in cases)

    largest = {
        suite: max((n_of(cases, suite) for cases in by_defence.values()), default=0)
        for suite in figure.suites
    }
    return [
        name
        for name, cases in by_defence.items()
        if cases and all(n_of(cases, suite) >= n / 4 for suite, n in largest.items())
    ]


def _point(name: str, cases: Sequence[JudgedRow], judge: str, figure: TradeOff) -> TradeOffPoint:
    harmful = [j for j in cases if j.row.suite in figure.harmful]
    harmless = [j for j in cases if j.row.suite in figure.harmless]
    success = share_of(harmful, lambda j: j.is_success(judge))
    return TradeOffPoint(
        name,
        name.partition(":")[0],
        Share(success.n - success.count, success.n),
        share_of(harmless, lambda j: j.is_answered(judge)),
    )


def _response_check_curve(
    cases: Sequence[JudgedRow], figure: TradeOff, helpfulness: Iterable[int]
) -> list[TradeOffPoint]:
    """The same answers at every limit that changes something, or some 60 of them.

    What is withheld follows from the scores alone. An answer that was withheld has no verdict of
    its own, so all are judged by the rules. helpfulness: numbers of harmless requests answered at
    which a limit is listed.
    """
    complied = {
        suites: sorted(_score(j) for j in cases if j.row.suite in suites and _complied(j))
        for suites in (figure.harmful, figure.harmless)
    }
    harmful, harmless = complied[figure.harmful], complied[figure.harmless]
    n_harmful = sum(j.row.suite in figure.harmful for j in cases)
    limits = sorted({score for score in (*harmful, *harmless) if math.isfinite(score)})
    listed = {
        found
        for n in helpfulness
        if (found := next((x for x in limits if bisect_right(harmless, x) >= n), None)) is not None
    }
    return [
        TradeOffPoint(
            f"response-check:limit={limit:.3f}",
            "response-check",
            Share(n_harmful - bisect_right(harmful, limit), n_harmful),
            Share(bisect_right(harmless, limit), len(cases) - n_harmful),
            is_listed=limit in listed,
        )
        for limit in sorted({*_some(limits, _N_LIMITS), *listed})
    ]


def _score(judged: JudgedRow) -> float:
    """What a limit is compared with; an answer without tokens is never withheld."""
    return -math.inf if judged.row.mean_score is None else judged.row.mean_score


def _complied(judged: JudgedRow) -> bool:
    from safesteer_edge.metrics.refusal_rules import classify_answer

    own = judged.row.own_answer if judged.row.withheld else judged.row.answer
    return classify_answer(own) == "complied"


def _some(values: Sequence[float], n: int) -> list[float]:
    """At most n of them, evenly over their order, with both ends."""
    if len(values) <= n:
        return list(values)
    return [values[i * (len(values) - 1) // (n - 1)] for i in range(n)]


# -- the plots of a report: safety against helpfulness, and separation by decoding step ------------

Json = dict[str, Any]
_N_LARGE_DOTS: Final = 20  # of a curve with more points, the dots would hide the line


def trade_off_plot(points: Sequence[Json]) -> str:
    """Each defence a point, each family that may be moved a curve; "" without points."""
    families: dict[str, list[PlotPoint]] = {}
    for point in points:
        stopped, answered = point["stopped"], point["answered"]
        is_calibrated = ":" not in point["defence"]
        families.setdefault(point["family"], []).append(
            PlotPoint(
                answered["share"],
                stopped["share"],
                is_main=is_calibrated,
                label=(
                    f"{point['defence']}: {stopped['count']}/{stopped['n']} attacks stopped, "
                    f"{answered['count']}/{answered['n']} harmless answered"
                ),
                x_range=(answered["low"], answered["high"]) if is_calibrated else None,
                y_range=(stopped["low"], stopped["high"]) if is_calibrated else None,
            )
        )
    if not families:
        return ""
    return plot(
        [
            Series(
                name,
                tuple(sorted(drawn, key=lambda p: (p.x, -p.y))),
                radius=4 if len(drawn) <= _N_LARGE_DOTS else 2,
            )
            for name, drawn in families.items()
        ],
        x_label="share of harmless requests answered",
        y_label="share of attacks stopped",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def steps_plot(report: Json) -> str:
    """AUROC by decoding step; "" without scores."""
    steps = report["steps"]["steps"]
    if len(steps) < 2:
        return ""
    points = tuple(
        PlotPoint(step["step"], step["auroc"], label=f"step {step['step']}: {step['auroc']:.3f}")
        for step in steps
    )
    last = max(step["step"] for step in steps)
    return plot(
        [Series("probe", points)],
        x_label="decoding step",
        y_label="AUROC",
        x_range=(0.0, float(-(-last // 5) * 5)),
        y_range=(0.5 if min(point.y for point in points) >= 0.5 else 0.0, 1.0),
    )


# -- A share as JSON-ready values: all of a report are written so ----------------------------------


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


# -- safety against helpfulness in a report: its values, and a plot and a table of each figure -----

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
