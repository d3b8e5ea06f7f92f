"""Openings that harvesting puts into the model's mouth, so that it sees both kinds of answer.

A model that rarely refuses gives no refusals to learn from, and one that always does gives no
compliance. The text after an opening is always the model's own. A probe that saw few openings
learns their words; it judges candidates by what they lead to only where it saw many. No opening
begins with three words that another split's begins with, so those of the test split are in words
that fitting and choosing never saw.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, Literal

from safesteer_edge.requests.requests import Row, Split, package_rows

OpeningKind = Literal["refusal", "compliance"]

OPENING_KINDS: Final[tuple[OpeningKind, ...]] = ("refusal", "compliance")
_STRIDE: Final = 7  # between the openings of one request, so that they are not all much alike


@dataclass(frozen=True, slots=True)
class _OpeningRow(Row):
    kind: OpeningKind
    split: Split
    text: str


@functools.cache
def all_openings(kind: OpeningKind, split: Split) -> tuple[str, ...]:
    """Every opening of a kind that this split may use.

    Raises RequestDataError for a damaged installation.
    """
    rows = package_rows("openings.jsonl", _OpeningRow)
    return tuple(row.text for row in rows if (row.kind, row.split) == (kind, split))


def openings(kind: OpeningKind, index: int, *, split: Split, n: int = 1) -> tuple[str, ...]:
    """N different openings of a kind, from the wordings that this split may use; cyclic in index.

    n: at most as many as there are.
    """
    texts = all_openings(kind, split)
    step = _STRIDE if len(texts) % _STRIDE else 1  # coprime: no opening comes twice
    return tuple(texts[(index + step * at) % len(texts)] for at in range(min(n, len(texts))))
