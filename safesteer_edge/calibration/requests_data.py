"""The requests that a guard is calibrated and tested on: the package's own, and a user's.

Knows nothing of models, chat templates or hidden states: it reads JSONL, checks every row and
hands out `Request` values.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, Literal

from safesteer_edge.calibration.request_rows import RequestRow, listed, read_rows, shortened
from safesteer_edge.errors import RequestDataError, SettingsError

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
    file = resources.files("safesteer_edge.calibration") / "requests" / name
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
