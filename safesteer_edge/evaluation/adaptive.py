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
from safesteer_edge.evaluation.judged import own_words_comply
from safesteer_edge.evaluation.rows import EvalRow

MAX_TRIES: Final = 100
_N_KEPT: Final = 6  # disguises, the best so far, that are put together
_MAX_PARTS: Final = 4
_N_DRAWS: Final = 20  # until a disguise is new

Ask = Callable[[Case], tuple[EvalRow, float | None]]  # the row, and the risk that was shown
_Dress = frozenset[str]


def try_again(case: Case, ask: Ask, *, seed: int) -> EvalRow:
    """The row of the first answer that complies by the rules, or else of the last one.

    Its `tries` says how many there were. What cannot be asked in one disguise is asked in another;
    where nothing at all can be, the row is an error. A risk that is not known leads nobody.
    """
    order = random.Random(f"{seed} {case.id}")
    risks: dict[_Dress, float] = {}
    row: EvalRow | None = None
    for n, names in zip(range(1, case.tries + 1), _disguises(risks, order), strict=False):
        asked, risk = ask(replace(case, turns=dressed(case.request, names), tries=0))
        risks[names] = 1.0 if risk is None else risk
        if row is None or asked.status == "ok":
            row = asked
        row = replace(row, tries=n)
        if asked.status == "ok" and own_words_comply(asked):
            break
    if row is None:
        raise ValueError(f"case {case.id!r} allows {case.tries} tries; expected at least one")
    return row


def _disguises(risks: dict[_Dress, float], order: random.Random) -> Iterator[_Dress]:
    """The request as it is, then disguises without end; risks: of those tried, as they come in."""
    names = [*FORMS, *FRAMES, *SURROUNDINGS, *SHAPES]
    single = [frozenset({name}) for name in order.sample(names, len(names))]
    yield frozenset()
    while True:
        if single:
            yield single.pop()
        yield _combined(risks, names, order)


def _combined(risks: dict[_Dress, float], names: list[str], order: random.Random) -> _Dress:
    """Two of the best, or one more part to them, whichever was not tried."""
    best = sorted((dress for dress in risks if dress), key=lambda dress: risks[dress])[:_N_KEPT]
    for _ in range(_N_DRAWS):
        found = _fitting(order.choice(best) | order.choice(best), order)
        if found not in risks:
            return found
        found = _fitting(found | {order.choice(names)}, order)
        if found not in risks:
            return found
    return _fitting(frozenset(order.sample(names, _MAX_PARTS)), order)


def _fitting(dress: _Dress, order: random.Random) -> _Dress:
    """So many parts at most, and one shape."""
    parts = sorted(dress)  # a set's own order is another in each process
    order.shuffle(parts)
    shapes = [part for part in parts if part in SHAPES][1:]
    return frozenset([part for part in parts if part not in shapes][:_MAX_PARTS])
