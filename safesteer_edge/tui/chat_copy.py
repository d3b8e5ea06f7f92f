"""What `/copy` copies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.tui.shown_turn import ShownTurn

_FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)


def text_to_copy(turns: Sequence[ShownTurn], argument: str) -> tuple[str, str]:
    """The text, and what it is in words. Raises InputError if there is no such text."""
    answered = [turn for turn in turns if turn.text]
    if not answered:
        raise InputError("there is no answer to copy yet")
    if argument in ("", "last"):
        return answered[-1].text, "the last answer"
    if argument == "all":
        parts = [f"> {turn.question}\n\n{turn.text}" for turn in answered]
        return "\n\n".join(parts), "the whole chat"
    words = argument.split()
    if words[0] == "code" and len(words) <= 2:
        return _code(answered, words[1] if len(words) == 2 else "")
    raise InputError(f"copy {argument!r}; expected last, code N, or all")


def code_blocks(text: str) -> list[str]:
    """The fenced blocks of a Markdown text."""
    return [found.group(2).rstrip("\n") for found in _FENCE.finditer(text + "\n")]


def _code(answered: Sequence[ShownTurn], number: str) -> tuple[str, str]:
    blocks = next((found for r in reversed(answered) if (found := code_blocks(r.text))), [])
    if not blocks:
        raise InputError("there is no code block in this chat")
    if not number:
        return blocks[-1], "the last code block"
    if not number.isdecimal() or not 1 <= int(number) <= len(blocks):
        raise InputError(f"code block {number!r}; the last answer with code has {len(blocks)}")
    return blocks[int(number) - 1], f"code block {number}"


# -- the steps of a turn as a file: one JSON object a line, as `ask --trace` writes them -----------


def write_trace(turn: ShownTurn, argument: str) -> tuple[Path, int]:
    """Write the steps of a turn; returns file and number. argument: a file, or nothing."""
    if not turn.steps:
        raise InputError("the last answer has no steps here; regenerate it to have them")
    path = Path(argument or "safesteer-trace.jsonl").expanduser()
    try:
        with atomic_write(path, "w") as stream:
            for step in turn.steps:
                stream.write(json.dumps(asdict(step), ensure_ascii=False) + "\n")
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(path)!r}: {error.strerror or error}; give a file in a folder "
            "that exists and is writable"
        ) from error
    return path, len(turn.steps)
