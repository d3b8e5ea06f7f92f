"""Files as rows: each with where it is; a row that is broken has a `_problem`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from safesteer_edge.errors import RequestDataError

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_TEXT_CHARACTERS: Final = 100_000

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row]]


class RowError(Exception):
    """This row makes no case; the text says why."""


def text_of_file(path: Path) -> str:
    """Raises RequestDataError if it is missing, too large or not UTF-8."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RequestDataError(
                f"cannot read {str(path)!r}: {size} bytes, the limit is {MAX_FILE_BYTES}; split it"
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestDataError(
            f"cannot read {str(path)!r}: {error.strerror or error}; give the path of the file"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestDataError(
            f"cannot read {str(path)!r}: not UTF-8 ({error}); save it as UTF-8"
        ) from error


def lines_of(path: Path) -> Rows:
    for number, line in enumerate(text_of_file(path).splitlines(), start=1):
        if line.strip():
            yield f"line {number}", {"line": line}


def csv_rows(path: Path, columns: Sequence[Sequence[str]]) -> Rows:
    """The values under the first of each set of names that is there.

    Raises RequestDataError if a column is missing, naming those that are there.
    """
    reader = csv.reader(io.StringIO(text_of_file(path), newline=""))
    try:
        header = next(reader, [])
        found: dict[str, int] = {}
        for names in columns:
            present = [name for name in names if name in header]
            if not present:
                raise RequestDataError(
                    f"{str(path)!r} has no column {' or '.join(map(repr, names))}; it has "
                    f"{', '.join(map(repr, header[:12])) or 'none'}; choose the format that it has"
                )
            found[names[0]] = header.index(present[0])
        for number, values in enumerate(reader, start=2):
            if len(values) == len(header):
                yield f"row {number}", {name: values[i] for name, i in found.items()}
            elif values:  # no blank line
                problem = f"{len(values)} values for {len(header)} columns"
                yield f"row {number}", {"_problem": problem}
    except csv.Error as error:
        raise RequestDataError(
            f"cannot read {str(path)!r} as CSV: {error} (near line {reader.line_num})"
        ) from error


def entries_of(path: Path) -> Rows:
    """The objects of a JSON object or list, each with its name or number as `_name`."""
    try:
        value: object = json.loads(text_of_file(path))
    except (ValueError, RecursionError) as error:
        raise RequestDataError(f"cannot read {str(path)!r} as JSON: {error}") from error
    if isinstance(value, dict):
        entries = list(cast("dict[str, object]", value).items())
    elif isinstance(value, list):
        entries = [(str(i), entry) for i, entry in enumerate(cast("list[object]", value))]
    else:
        raise RequestDataError(f"{str(path)!r} is neither a JSON object nor a list")
    for name, entry in entries:
        is_object = isinstance(entry, dict)
        row = cast("Row", entry) if is_object else {"_problem": "not an object"}
        yield f"entry {name}", {**row, "_name": name}


def text_of(row: Row, key: str, *, default: str | None = None) -> str:
    """A text of a row. Raises RowError if it is missing, empty, too long or no text."""
    if isinstance(row.get("_problem"), str):
        raise RowError(row["_problem"])
    value = row.get(key, default)
    if not isinstance(value, str):
        raise RowError(f"no text under {key!r}")
    if not value.strip() and default is None:
        raise RowError(f"{key!r} is empty")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise RowError(f"{key!r} has {len(value)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    return value.strip()


_PROMPT_KEYS: Final = ("text", "prompt", "question", "instruction")


def prompt_of(row: Row) -> str:
    """The prompt, named as in IFEval, GSM8K or self-instruct; of MT-Bench's turns the first.

    Raises RowError as `text_of`.
    """
    turns = row.get("turns")
    if isinstance(turns, list) and turns:
        first = cast("list[object]", turns)[0]
        said = cast("Row", first).get("content") if isinstance(first, dict) else first
        return text_of({"text": said}, "text")
    return text_of(row, next((key for key in _PROMPT_KEYS if key in row), _PROMPT_KEYS[0]))


def texts_of(row: Row, key: str) -> tuple[str, ...]:
    items = row.get(key, [])
    if not isinstance(items, list) or not all(
        isinstance(item, str) and item.strip() for item in cast("list[object]", items)
    ):
        raise RowError(f"{key!r} must be a list of texts")
    return tuple(cast("list[str]", items))


def image_at(*paths: Path) -> Path:
    """The first of these files that is there. Raises RowError."""
    for path in paths:
        if path.is_file():
            return path
    raise RowError(f"no image {paths[0].name!r} in {str(paths[0].parent)!r}")


def file_name(row: Row, key: str, *, in_folders: bool = False) -> str:
    """A file's name that stays in its folder; in_folders: or in one below it."""
    name = text_of(row, key)
    path = Path(name)
    if (path.is_absolute() or ".." in path.parts) if in_folders else path.name != name:
        raise RowError(f"{key!r} is {name!r}, not a file's name")
    return name
