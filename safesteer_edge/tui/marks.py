"""Marks around the steered passages of an answer, which outlive its way through Markdown.

Two private-use characters stand around a passage. Model text never holds them: `without_marks`
comes first. They go round letters alone, so that a mark never breaks what Markdown makes of the
start of a line, a fence or a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OPEN, CLOSE = "\ue000", "\ue001"
_MARKS = re.compile(f"[{OPEN}{CLOSE}]")
_LETTERS = re.compile(r"[^\W\d_]+(?:[^\S\n]*[^\W\d_]+)*")

Span = tuple[int, int]


def without_marks(text: str) -> str:
    """The text with any such character replaced; of the same length."""
    return _MARKS.sub("\ufffd", text)


def removed_marks(text: str) -> str:
    """The text as it was before it was marked."""
    return _MARKS.sub("", text)


def marked(text: str, spans: Iterable[Span]) -> str:
    """The text with marks around the letters in these spans; they are in order, and apart."""
    parts: list[str] = []
    position = 0
    for start, end in spans:
        found = _LETTERS.search(text, max(start, position), end)
        if found is None:
            continue
        parts += [text[position : found.start()], OPEN, found.group(), CLOSE]
        position = found.end()
    return "".join(parts) + text[position:]


def split_marks(text: str) -> tuple[str, list[Span]]:
    """The text without marks, and the spans that they stood around."""
    spans: list[Span] = []
    parts: list[str] = []
    length, start = 0, None
    for piece in re.split(f"({OPEN}|{CLOSE})", text):
        if piece == OPEN:
            start = length
        elif piece == CLOSE:
            if start is not None and start < length:
                spans.append((start, length))
            start = None
        else:
            parts.append(piece)
            length += len(piece)
    if start is not None and start < length:
        spans.append((start, length))
    return "".join(parts), spans
