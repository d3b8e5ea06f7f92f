"""The end of a long answer, cut where Markdown still means the same."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# To begin at a blank line, so much less than what was asked for may be shown.
_SEARCHED_SHARE = 4


def tail_of(text: str, n_lines: int) -> tuple[int, str]:
    """How many lines are left out, and the last `n_lines` of a text, or somewhat fewer.

    It begins after a blank line where there is one. Where it begins inside a code block, the block
    is opened again.
    """
    lines = text.split("\n")
    start = len(lines) - n_lines
    if start <= 0:
        return 0, text
    fence = _open_fence(lines[:start])
    if fence is not None:
        return start, "\n".join([fence, *lines[start:]])
    for index in range(start, start + n_lines // _SEARCHED_SHARE):
        if _FENCE.match(lines[index]):
            start = index
            break
        if not lines[index].strip():
            start = index + 1
            break
    return start, "\n".join(lines[start:])


def _open_fence(lines: list[str]) -> str | None:
    """The line that opened the code block which these lines end in; None: they end in none."""
    opener: str | None = None
    mark = ""
    for line in lines:
        found = _FENCE.match(line)
        if found is None:
            continue
        if opener is None:
            opener, mark = line, found.group(1)
        elif found.group(1).startswith(mark) and not line[found.end() :].strip():
            opener = None
    return opener
