"""Bounded reading of JSONL rows: one flat JSON object per line, its keys from a known list.

Knows nothing of what the rows mean. The lines may come from anyone: length, size, encoding,
JSON and keys are checked before a caller sees a row, and every error names file and line.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Final, TypeVar

from safesteer_edge.errors import RequestDataError

MAX_LINE_BYTES: Final = 64 * 1024
MAX_FILE_BYTES: Final = 64 * 1024 * 1024

_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True, slots=True)
class RequestRow:
    """The JSON object of one line. source: the file as errors name it; line_number: from 1."""

    source: str
    line_number: int
    values: Mapping[str, object]

    def error(self, problem: str, remedy: str) -> RequestDataError:
        """Return (not raise) an error that says where, what, and what to do."""
        return RequestDataError(f"{self.source}, line {self.line_number}: {problem}; {remedy}")

    def text(self, key: str, default: str | None = None) -> str:
        """Return a value that must be a non-empty string. Raises RequestDataError."""
        value = self.values.get(key, default)
        if key not in self.values and default is None:
            raise self.error(f"no {key!r}", f"add it as a non-empty string under the key {key!r}")
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{key!r} is {shortened(value)}", "write it as a non-empty string")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can spell a lone surrogate (\ud800), which no tokenizer or file can take.
            raise self.error(
                f"{key!r} holds half of a surrogate pair", "write the character itself"
            ) from error
        return value

    def choice(
        self, key: str, allowed: tuple[_Choice, ...], default: _Choice | None = None
    ) -> _Choice:
        """Return a value that must be one of `allowed`. Raises RequestDataError."""
        if default is not None and key not in self.values:
            return default
        value = self.text(key)
        for choice in allowed:
            if value == choice:
                return choice
        raise self.error(f"unknown {key} {shortened(value)}", suggestion(value, allowed))


def read_rows(stream: IO[bytes], source: str, keys: tuple[str, ...]) -> Iterator[RequestRow]:
    """Yield the checked rows of a JSONL stream; blank lines are skipped.

    Holds one line of at most MAX_LINE_BYTES, and reads MAX_FILE_BYTES at most, so that a device
    or a pipe without an end stops too. Raises RequestDataError.
    """
    size_bytes = 0
    line_number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        line_number += 1
        size_bytes += len(raw)
        here = f"{source}, line {line_number}"
        if len(raw) > MAX_LINE_BYTES:
            raise RequestDataError(
                f"{here}: longer than {MAX_LINE_BYTES} bytes; put one JSON object on each line, and"
                " shorten this one"
            )
        if size_bytes > MAX_FILE_BYTES:
            raise RequestDataError(
                f"{here}: the file is larger than {MAX_FILE_BYTES} bytes; split it into several"
            )
        if line_number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # Windows editors write this mark
        if raw.strip():
            yield RequestRow(source, line_number, _parsed_object(raw, here, keys))


def suggestion(value: str, allowed: tuple[str, ...]) -> str:
    """Return the remedy for an unknown name: the nearest allowed one, or all of them."""
    near = difflib.get_close_matches(value.casefold()[:60], allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {listed(allowed)}"


def listed(values: tuple[str, ...]) -> str:
    """Return the values in quotes, with commas."""
    return ", ".join(repr(value) for value in values)


def shortened(value: object) -> str:
    """Return the repr of a value, cut where it would fill an error message."""
    shown = repr(value.members) if isinstance(value, _JsonObject) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


@dataclass(frozen=True, slots=True)
class _JsonObject:
    """A parsed JSON object, told apart from every other JSON value by its type."""

    members: dict[str, object]


def _parsed_object(raw: bytes, here: str, keys: tuple[str, ...]) -> Mapping[str, object]:
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeated_keys)
    except UnicodeDecodeError as error:
        raise RequestDataError(
            f"{here}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        # ValueError: broken JSON, a repeated key, or a number of too many digits.
        raise RequestDataError(
            f"{here}: not a usable JSON object ({error}); write one object with the keys"
            f" {listed(keys)}"
        ) from error
    if not isinstance(value, _JsonObject):
        raise RequestDataError(
            f"{here}: {shortened(value)} is not a JSON object; write one with the keys"
            f" {listed(keys)}"
        )
    for key in value.members:
        if key not in keys:
            raise RequestDataError(f"{here}: unknown key {shortened(key)}; {suggestion(key, keys)}")
    return value.members


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> _JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands there twice")
    return _JsonObject(members)
