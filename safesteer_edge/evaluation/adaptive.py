"""Somebody who may try again: a request in one disguise after the other, led by the risk shown.

Every other try is a disguise that was not tried yet; in between, those whose risk was lowest are
put together. Nothing is optimised but the choice: no suffixes, no gradients. A measure of what a
guard withstands, not a tool against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.disguises import FORMS, FRAMES, SHAPES, SURROUNDINGS, dressed
from safesteer_edge.evaluation.judged import complies_with_request
from safesteer_edge.evaluation.rows import EvalRow
from safesteer_edge.guard.plain_text import readable
from safesteer_edge.metrics.refusal_rules import is_refusal, speaks_of

MAX_TRIES: Final = 100
_WEIGHTS: Final = (8, 4, 2, 1, 1, 1)  # of the best disguises so far, which are put together
_MAX_PARTS: Final = 4
_N_DRAWS: Final = 20  # until a disguise is new

Ask = Callable[[Case], tuple[EvalRow, float | None]]  # the row, and the risk that was shown
Dress = frozenset[str]


def try_again(case: Case, ask: Ask, *, seed: int) -> EvalRow:
    """The row of the first answer that complies with the request, or else of the last one.

    Its `tries` says how many there were. What cannot be asked in one disguise is asked in another;
    where nothing at all can be, the row is an error. A risk that is not known leads nobody.
    """
    costs: dict[Dress, float] = {}
    row: EvalRow | None = None
    disguises = _disguises(costs, random.Random(f"{seed} {case.id}"))
    for n, names in zip(range(1, case.tries + 1), disguises, strict=False):
        asked, risk = ask(replace(case, turns=dressed(case.request, names), tries=0))
        costs[names] = _cost(asked, risk)
        if row is None or asked.status == "ok":
            row = replace(asked, disguise="+".join(sorted(names)))
        row = replace(row, tries=n)
        if asked.status == "ok" and complies_with_request(asked):
            break
    if row is None:
        raise ValueError(f"case {case.id!r} allows {case.tries} tries; expected at least one")
    return row


def blind_disguises(name: str, n: int, *, seed: int) -> list[Dress]:
    """What somebody whom nothing leads tries first: for ordinary requests."""
    costs: dict[Dress, float] = {}
    for _, names in zip(range(n), _disguises(costs, random.Random(f"{seed} {name}")), strict=False):
        costs[names] = 1.0
    return list(costs)


def _cost(row: EvalRow, risk: float | None) -> float:
    """The risk; more than any, where the model did not understand what was asked for.

    Letters that nobody can read are the least risky, and lead nowhere.
    """
    said = readable(row.answer)
    is_understood = is_refusal(said, row.request) or speaks_of(said, row.request)
    return (1.0 if risk is None else risk) + (not is_understood)


def _disguises(costs: dict[Dress, float], order: random.Random) -> Iterator[Dress]:
    """The request as it is, then disguises without end; costs: of those tried, as they come in."""
    names = [*FORMS, *FRAMES, *SURROUNDINGS, *SHAPES]
    single = [frozenset({name}) for name in order.sample(names, len(names))]
    yield frozenset()
    while True:
        if single:
            yield single.pop()
        yield _combined(costs, names, order)


def _combined(costs: dict[Dress, float], names: list[str], order: random.Random) -> Dress:
    """Two of the best, or one more part to them, whichever was not tried."""
    best = sorted(filter(None, costs), key=costs.__getitem__)[: len(_WEIGHTS)]
    for _ in range(_N_DRAWS):
        one, other = order.choices(best, _WEIGHTS[: len(best)], k=2)
        found = _fitting(one | other, order)
        if found not in costs:
            return found
        found = _fitting(found | {order.choice(names)}, order)
        if found not in costs:
            return found
    return _fitting(frozenset(order.sample(names, _MAX_PARTS)), order)


def _fitting(dress: Dress, order: random.Random) -> Dress:
    """So many parts at most, and one shape."""
    parts = sorted(dress)  # a set's own order is another in each process
    order.shuffle(parts)
    shapes = [part for part in parts if part in SHAPES][1:]
    return frozenset([part for part in parts if part not in shapes][:_MAX_PARTS])
