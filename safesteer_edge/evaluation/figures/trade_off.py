"""Safety against helpfulness: one point for each defence, and curves where a limit may be moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.evaluation.figures.judged import JudgedRow, grouped, share_of
from safesteer_edge.evaluation.statistics import Share

# What every defence of a curve is run on (`running.plan`).
HARMFUL_SUITES: Final = ("text-harmful",)
HELPFUL_SUITES: Final = ("borderline", "harmless-twins", "ordinary-text")
_N_LIMITS: Final = 12


@dataclass(frozen=True, slots=True)
class TradeOffPoint:
    """stopped: attacks without success. answered: harmless requests neither refused nor given words
    without sense.

    All points of one figure are of the same cases.
    """

    defence: str
    family: str
    stopped: Share
    answered: Share


def trade_off_points(rows: Sequence[JudgedRow], judge: str) -> list[TradeOffPoint]:
    """The defences that answered a common set of cases, and response checks at other limits."""
    by_defence = {
        name: _by_case(group) for name, group in grouped(rows, lambda row: row.defence).items()
    }
    names = [name for name, cases in by_defence.items() if cases]
    largest = max((len(cases) for cases in by_defence.values()), default=0)
    # Defences on a handful of cases (the slow ones) would shrink what all have in common.
    names = [name for name in names if len(by_defence[name]) >= largest / 4]
    if not names:
        return []
    common = set.intersection(*(set(by_defence[name]) for name in names))
    points: list[TradeOffPoint] = []
    for name in names:
        cases = [by_defence[name][key] for key in sorted(common)]
        family = name.partition(":")[0]
        points.append(_point(name, family, cases, judge))
        if family == "response-check":
            points += _response_check_curve(cases, judge)
    return [point for point in points if point.stopped.n and point.answered.n]


def _by_case(rows: Sequence[JudgedRow]) -> dict[tuple[str, str], JudgedRow]:
    return {
        (j.row.suite, j.row.case_id): j
        for j in rows
        if j.row.status == "ok" and j.row.suite in (*HARMFUL_SUITES, *HELPFUL_SUITES)
    }


def _point(name: str, family: str, cases: Sequence[JudgedRow], judge: str) -> TradeOffPoint:
    harmful = [j for j in cases if j.row.suite in HARMFUL_SUITES]
    helpful = [j for j in cases if j.row.suite in HELPFUL_SUITES]
    success = share_of(harmful, lambda j: j.is_success(judge))
    answered = share_of(helpful, lambda j: j.is_answered(judge))
    return TradeOffPoint(
        name,
        family,
        Share(success.n - success.count, success.n),
        answered,
    )


def _response_check_curve(cases: Sequence[JudgedRow], judge: str) -> list[TradeOffPoint]:
    """The same answers at other limits: what is withheld follows from the scores alone.

    An answer that was withheld has no verdict of its own: such cases are judged by the rules.
    """
    from safesteer_edge.evaluation.refusal_rules import classify_answer

    known = [(j, j.row.mean_score) for j in cases if j.row.mean_score is not None]
    scores = sorted({score for _, score in known})
    if len(scores) < 2 or judge != "rules":
        return []
    limits = [scores[i * (len(scores) - 1) // _N_LIMITS] for i in range(_N_LIMITS + 1)]
    points: list[TradeOffPoint] = []
    for limit in dict.fromkeys(limits):
        stopped = answered = n_harmful = n_helpful = 0
        for judged, score in known:
            own = judged.row.own_answer or judged.row.answer
            label = "refused" if score > limit else classify_answer(own)
            if judged.row.suite in HARMFUL_SUITES:
                n_harmful += 1
                stopped += label != "complied"
            else:
                n_helpful += 1
                answered += label == "complied"
        name = f"response-check:limit={limit:.3f}"
        points.append(
            TradeOffPoint(
                name, "response-check", Share(stopped, n_harmful), Share(answered, n_helpful)
            )
        )
    return points
