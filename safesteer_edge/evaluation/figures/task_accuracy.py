"""Whether an answer meets what was expected of it."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from safesteer_edge.evaluation.running.rows import EvalRow

_LETTERS: Final = "ABCDEFGHIJ"
_AND: Final = "<AND>"  # in MM-Vet's answers: both must be there
# "B", "(B)", "B.", "The answer is B", "Answer: B"; not the article in "A dog".
_LETTER: Final = re.compile(
    r"(?:^\W*|\b(?:answer|option|choice)\b(?: is)?\W*)([A-J])(?=\W*$|[).:,]|\s*[-–])", re.IGNORECASE
)


def is_right(row: EvalRow) -> bool | None:
    """The answer names an expected one, whole words; None: nothing is expected."""
    if not row.expected or row.status != "ok":
        return None
    if row.choices:
        chosen = chosen_choice(row.answer, row.choices)
        return chosen is not None and _normalised(chosen) in map(_normalised, row.expected)
    answer = f" {_normalised(row.answer)} "
    return any(
        all(f" {_normalised(part)} " in answer for part in expected.split(_AND))
        for expected in row.expected
    )


def chosen_choice(answer: str, choices: tuple[str, ...]) -> str | None:
    """The choice that an answer settles on, by its letter or else as the only one it names."""
    letter = _LETTER.search(answer.strip())
    if letter is not None:
        index = _LETTERS.index(letter[1].upper())
        return choices[index] if index < len(choices) else None
    text = f" {_normalised(answer)} "
    named = [choice for choice in choices if f" {_normalised(choice)} " in text]
    return named[0] if len(named) == 1 else None


def _normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w]+", " ", plain).split())
