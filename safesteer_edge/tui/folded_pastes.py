"""Long pastes in the input: a label stands for each, which is kept whole until it is sent."""

from __future__ import annotations

import re
from itertools import count

# More would hide what was typed around it; the input shows seven lines.
_MAX_LINES = 20
_MAX_CHARACTERS = 2_000


class FoldedPastes:
    """The labels of one input. They stay known: undo and the history bring them back."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._labels = re.compile(r"(?!)")

    def fold(self, text: str) -> str:
        """The label of a text from now on; a short text itself."""
        if not is_long(text):
            return text
        labels = (_label(text, number) for number in count(1))
        label = next(label for label in labels if self._texts.get(label, text) == text)
        self._texts[label] = text
        self._labels = re.compile("|".join(map(re.escape, self._texts)))
        return label

    def whole(self, text: str) -> str:
        """A text with what its labels stand for."""
        return self._labels.sub(lambda label: self._texts[label.group()], text)

    def refolded(self, text: str) -> str:
        """A whole text with the labels that stand for parts of it."""
        for label, whole in self._texts.items():
            text = text.replace(whole, label)
        return text

    def spans(self, line: str) -> list[tuple[int, int]]:
        """From where to where labels stand in a line."""
        return [label.span() for label in self._labels.finditer(line)]


def is_long(text: str) -> bool:
    """True if a pasted text would fill the input, so that it is folded."""
    return len(text) > _MAX_CHARACTERS or _n_lines(text) > _MAX_LINES


def _label(text: str, number: int) -> str:
    n_lines = _n_lines(text)
    size = f"{n_lines:,} lines" if n_lines > 1 else f"{len(text):,} characters"
    return f"[pasted {size}]" if number == 1 else f"[pasted {size}, {number}]"


def _n_lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))
