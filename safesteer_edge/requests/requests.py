"""The requests that a guard is calibrated and tested on: the package's own, and a user's.

Knows nothing of models, chat templates or hidden states: it reads JSONL, checks every row and
hands out `Request` values.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Final, Literal, TypeVar

from safesteer_edge.errors import RequestDataError, SettingsError

# -- bounded reading of JSONL rows: one flat JSON object per line, its keys from a known list ------
# Knows nothing of what the rows mean. The lines may come from anyone: length, size, encoding,
# JSON and keys are checked before a caller sees a row, and every error names file and line.

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


Split = Literal["train", "calibration", "test"]
Label = Literal["harmful", "harmless", "borderline", "ordinary"]

SPLITS: Final[tuple[Split, ...]] = ("train", "calibration", "test")
LABELS: Final[tuple[Label, ...]] = ("harmful", "harmless", "borderline", "ordinary")

_USER_KEYS: Final = ("text", "label", "split", "id", "group", "language", "image", "audio")
_PAIR_KEYS: Final = ("id", "scenario", "harmful", "harmless", "split")
_BORDERLINE_KEYS: Final = ("id", "kind", "text", "split")
_ORDINARY_KEYS: Final = ("id", "kind", "language", "text", "split")
_PAIR_SIDES: Final[tuple[Label, ...]] = ("harmful", "harmless")
_UNDETERMINED_LANGUAGE: Final = "und"  # BCP 47


@dataclass(frozen=True, slots=True)
class Request:
    """One request. group: its scenario or kind; language: BCP 47, "und" where a file has none.

    pair_id joins a harmful request to the harmless one that was written beside it; else None.
    image: a picture that the text is asked about. audio: a recording of the text.
    """

    id: str
    text: str
    label: Label
    group: str
    split: Split
    language: str
    pair_id: str | None = None
    image: Path | None = None
    audio: Path | None = None


def load_requests(
    *, splits: Collection[Split] | None = None, labels: Collection[Label] | None = None
) -> tuple[Request, ...]:
    """Return the package's own requests of these splits and labels (None: of all), in file order.

    Pairs come first (harmful, then its harmless twin), then borderline, then ordinary requests.
    Raises SettingsError for an unknown split or label, RequestDataError for a damaged installation.
    """
    wanted_splits = _checked_choices(splits, SPLITS, "split")
    wanted_labels = _checked_choices(labels, LABELS, "label")
    found: list[Request] = []
    if not wanted_labels.isdisjoint(_PAIR_SIDES):
        found += _package_requests("pairs.jsonl", _PAIR_KEYS, _pair_requests)
    if "borderline" in wanted_labels:
        found += _package_requests("borderline.jsonl", _BORDERLINE_KEYS, _borderline_requests)
    if "ordinary" in wanted_labels:
        found += _package_requests("ordinary.jsonl", _ORDINARY_KEYS, _ordinary_requests)
    return tuple(r for r in found if r.split in wanted_splits and r.label in wanted_labels)


def read_requests(path: Path) -> tuple[Request, ...]:
    """Return the requests of a user's JSONL file, in file order.

    One object per line: {"text", "label"}, and if wanted "split", "id", "group", "language", and
    "image" or "audio": a file, by its path from where the JSONL file is. A row without a split gets
    `split_of_text`'s; blank lines are skipped. Lines and file are bounded (request_rows.py).
    Raises RequestDataError naming file, line, problem and remedy; a text that stands in two splits
    or under two labels, an id used twice, or a file that is missing is such a problem.
    """
    source = repr(str(path))
    try:
        with path.open("rb") as stream:
            rows = list(read_rows(stream, source, _USER_KEYS))
    except OSError as error:
        raise RequestDataError(
            f"cannot read {source}: {error.strerror or error}; give the path of a readable JSONL"
            " file of requests"
        ) from error
    requests = tuple(_user_request(row, path) for row in rows)
    if not requests:
        raise RequestDataError(
            f'cannot use {source}: it holds no requests; write one {{"text": …, "label": …}} a line'
        )
    _refuse_contradictions(rows, requests)
    return requests


def split_of_text(text: str) -> Split:
    """Return the split that a text without one belongs to: 60 % train, 20 %, 20 % test.

    Decided by a hash of the text alone (case, white space and Unicode form aside), so that a row
    keeps its split when the file grows or is sorted, and copies never end up in two splits.
    """
    digest = hashlib.sha256(_normalised(text).encode("utf-8")).digest()
    percentile = int.from_bytes(digest[:8], "big") % 100
    if percentile < 60:
        return "train"
    return "calibration" if percentile < 80 else "test"


def _user_request(row: RequestRow, path: Path) -> Request:
    text = row.text("text")
    if "image" in row.values and "audio" in row.values:
        raise row.error("it has an 'image' and an 'audio'", "keep one of them")
    return Request(
        id=row.text("id", f"{path.stem}-{row.line_number:04d}"),
        text=text,
        label=row.choice("label", LABELS),
        group=row.text("group", "user"),
        split=row.choice("split", SPLITS, split_of_text(_with_image(row, text))),
        language=row.text("language", _UNDETERMINED_LANGUAGE),
        image=_media_file(row, "image", path.parent),
        audio=_media_file(row, "audio", path.parent),
    )


def _with_image(row: RequestRow, text: str) -> str:
    """What decides a row's split: "What is this?" is asked about many pictures."""
    return f"{text} {row.text('image')}" if "image" in row.values else text


def _media_file(row: RequestRow, key: str, folder: Path) -> Path | None:
    if key not in row.values:
        return None
    file = folder / row.text(key)
    if not file.is_file():
        raise row.error(f"{key!r} names {shortened(str(file))}, which is no file", "correct it")
    return file


def _pair_requests(row: RequestRow) -> tuple[Request, ...]:
    pair_id, group = row.text("id"), row.text("scenario")
    split: Split = row.choice("split", SPLITS)
    return tuple(
        Request(f"{pair_id}/{side}", row.text(side), side, group, split, "en", pair_id)
        for side in _PAIR_SIDES
    )


def _borderline_requests(row: RequestRow) -> tuple[Request, ...]:
    return (_kind_request(row, "borderline", "en"),)


def _ordinary_requests(row: RequestRow) -> tuple[Request, ...]:
    return (_kind_request(row, "ordinary", row.text("language")),)


def _kind_request(row: RequestRow, label: Label, language: str) -> Request:
    split: Split = row.choice("split", SPLITS)
    return Request(row.text("id"), row.text("text"), label, row.text("kind"), split, language)


def _package_requests(
    name: str, keys: tuple[str, ...], requests_of_row: Callable[[RequestRow], tuple[Request, ...]]
) -> list[Request]:
    source = f"the package's {name!r}"
    file = resources.files("safesteer_edge.requests") / "data" / name
    try:
        with file.open("rb") as stream:
            rows = list(read_rows(stream, source, keys))
    except OSError as error:
        raise RequestDataError(
            f"cannot read {source}: {error.strerror or error}; reinstall safesteer-edge"
        ) from error
    return [request for row in rows for request in requests_of_row(row)]


def _refuse_contradictions(rows: list[RequestRow], requests: tuple[Request, ...]) -> None:
    line_of_id: dict[str, int] = {}
    # The same words about another picture are another request.
    first_of_text: dict[tuple[str, Path | None], tuple[int, Request]] = {}
    for row, request in zip(rows, requests, strict=True):
        id_line = line_of_id.setdefault(request.id, row.line_number)
        if id_line != row.line_number:
            raise row.error(f"id {shortened(request.id)} is that of line {id_line}", "change one")
        first_line, first = first_of_text.setdefault(
            (_normalised(request.text), request.image), (row.line_number, request)
        )
        if first.label != request.label:
            raise row.error(
                f"labelled {request.label!r}, but {first.label!r} in line {first_line} with the"
                " same text",
                "remove the wrong one",
            )
        if first.split != request.split:
            raise row.error(
                f"in split {request.split!r}, but in {first.split!r} in line {first_line} with the"
                " same text",
                "keep a text in one split, or the test measures what was trained on",
            )


def _checked_choices(
    chosen: Collection[str] | None, allowed: tuple[str, ...], what: str
) -> frozenset[str]:
    if chosen is None:
        return frozenset(allowed)
    # A lone string is a collection of letters: refuse it as a whole, not letter by letter.
    unknown = [chosen] if isinstance(chosen, str) else [v for v in chosen if v not in allowed]
    if unknown:
        raise SettingsError(
            f"cannot choose requests by {what} {unknown[0]!r}; give a collection of"
            f" {listed(allowed)}"
        )
    return frozenset(chosen)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# -- lots: what draws at random among requests, and draws the same each time and everywhere --------


def lot_of(text: str) -> int:
    """A number in [0, 2**32) of the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
