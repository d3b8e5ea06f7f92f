"""What leaves the chat: texts to copy, the chat as a file, and the steps of a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import get_args

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.export import EXPORT_SUFFIXES, ExportFormat, export_chat
from safesteer_edge.chats.records import StoredMedia
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.tui.shown_turn import ShownTurn

_FENCE = re.compile(r"^(`{3,}|~{3,})[^\n]*\n(.*?)^\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
_MAX_NAME = 40


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
    raise InputError(f"cannot copy {argument!r}; choose last, code N or all")


def code_blocks(text: str) -> list[str]:
    return [found.group(2).rstrip("\n") for found in _FENCE.finditer(text + "\n")]


def parse_target(argument: str) -> tuple[ExportFormat, Path | None]:
    """Format and file of `/export [md|html|json] [FILE]`; the file's ending can say the format."""
    first, _, rest = argument.partition(" ")
    named = _format_named(first)
    name = rest.strip() if named else argument
    path = Path(name).expanduser() if name else None
    by_ending = _format_named(path.suffix[1:]) if path is not None else None
    return named or by_ending or "markdown", path


def write_export(
    log: ChatLog,
    media_path: Callable[[StoredMedia], Path],
    to: ExportFormat,
    path: Path | None,
) -> Path:
    """Write a chat; returns the file. path: None makes a name of the title."""
    text = export_chat(log, to, media_path=media_path)
    return _written(path or _free_name(log.title, EXPORT_SUFFIXES[to]), text)


def write_trace(turn: ShownTurn, argument: str) -> tuple[Path, int]:
    """Write the steps of a turn, one JSON object a line, as `ask --trace` does.

    argument: a file, or nothing. Returns the file and how many they are.
    """
    if not turn.steps:
        raise InputError("the steps of the last answer were not kept; regenerate it first")
    lines = [json.dumps(asdict(step), ensure_ascii=False) + "\n" for step in turn.steps]
    path = Path(argument or "safesteer-trace.jsonl").expanduser()
    return _written(path, "".join(lines)), len(lines)


def _written(path: Path, text: str) -> Path:
    try:
        with atomic_write(path, "w") as stream:
            stream.write(text)
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(path)!r}: {error.strerror or error}; give a file in a folder "
            "that exists and is writable"
        ) from error
    return path


def _code(answered: Sequence[ShownTurn], number: str) -> tuple[str, str]:
    blocks = next((found for r in reversed(answered) if (found := code_blocks(r.text))), [])
    if not blocks:
        raise InputError("there is no code block in this chat")
    if not number:
        return blocks[-1], "the last code block"
    if not number.isdecimal() or not 1 <= int(number) <= len(blocks):
        raise InputError(
            f"there is no code block {number!r}; the last answer with code has {len(blocks)}"
        )
    return blocks[int(number) - 1], f"code block {number}"


def _format_named(name: str) -> ExportFormat | None:
    name = {"md": "markdown"}.get(name, name)
    return next((each for each in get_args(ExportFormat) if each == name), None)


def _free_name(title: str, suffix: str) -> Path:
    words = re.sub(r"[^\w]+", "-", title.casefold()).strip("-")[:_MAX_NAME].strip("-") or "chat"
    names = (f"{words}{'' if number == 1 else f'-{number}'}{suffix}" for number in count(1))
    return next(path for path in map(Path, names) if not path.exists())
