"""How far judges agree, and whether two defences differ: Cohen's κ and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from safesteer_edge.evaluation.figures.judged import JudgedRow
from safesteer_edge.evaluation.statistics import Share


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Two judges on the same answers to attacks. kappa: beyond chance; NaN if both never vary."""

    judges: tuple[str, str]
    agreeing: Share
    kappa: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The same cases under two defences. only_first: hits of the first that the second has not."""

    what: str
    first: str
    second: str
    n: int
    only_first: int
    only_second: int
    p_value: float


def cohens_kappa(first: Sequence[object], second: Sequence[object]) -> float:
    """Agreement beyond chance of two lists of labels; NaN where chance alone agrees always."""
    n = len(first)
    if n == 0:
        return math.nan
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = {*first, *second}
    by_chance = sum(first.count(x) * second.count(x) for x in labels) / n**2
    return math.nan if by_chance == 1.0 else (observed - by_chance) / (1.0 - by_chance)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact and two-sided: the chance of a split as uneven as this, were both sides alike."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def judge_agreements(rows: Iterable[JudgedRow], judges: Sequence[str]) -> list[JudgeAgreement]:
    """Each pair of judges, on distinct answers of which both know whether an attack succeeded."""
    harmful = {
        (judged.row.request, judged.row.answer): judged
        for judged in rows
        if judged.row.kind == "harmful" and judged.row.status == "ok"
    }
    found: list[JudgeAgreement] = []
    for i, one in enumerate(judges):
        for other in judges[i + 1 :]:
            pairs = [(r.is_success(one), r.is_success(other)) for r in harmful.values()]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            first, second = [a for a, _ in both], [b for _, b in both]
            share = Share(sum(a == b for a, b in both), len(both))
            found.append(JudgeAgreement((one, other), share, cohens_kappa(first, second)))
    return found


def paired_test(
    what: str,
    first: Iterable[JudgedRow],
    second: Iterable[JudgedRow],
    hit: Callable[[JudgedRow], bool | None],
) -> PairedTest | None:
    """McNemar's test on the cases that both have; None: there are none."""
    one = {(j.row.suite, j.row.case_id): j for j in first}
    other = {(j.row.suite, j.row.case_id): j for j in second}
    pairs = [(hit(one[key]), hit(other[key])) for key in one if key in other]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        return None
    only_first = sum(a and not b for a, b in known)
    only_second = sum(b and not a for a, b in known)
    names = [next(iter(side.values())).row.defence for side in (one, other)]
    return PairedTest(
        what,
        names[0],
        names[1],
        len(known),
        only_first,
        only_second,
        mcnemar_p_value(only_first, only_second),
    )
