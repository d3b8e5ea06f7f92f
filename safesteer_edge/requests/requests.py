"""The requests that guards are calibrated and tested on: the package's own, and a user's.

Knows nothing of models, chat templates or hidden states: it reads JSONL, checks every row and
hands out `Request` values. The lines may come from anyone: length, size, encoding, JSON and keys
are checked before a row is made, and every error names file and line.

The requests that drift is measured on, and those that a recalibration decides on, are fixed, so
that two runs, and two quantizations, are compared on the same ones; and none is in both: a
recalibrated guard is measured on requests that it was not set by.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import IO, Final, Literal, TypeVar

from safesteer_edge.errors import RequestDataError, SettingsError, os_errors_as
from safesteer_edge.formats.json_values import BadValueError, from_json, load_json

Split = Literal["train", "calibration", "test"]
Label = Literal["harmful", "harmless", "borderline", "ordinary"]

SPLITS: Final[tuple[Split, ...]] = ("train", "calibration", "test")
LABELS: Final[tuple[Label, ...]] = ("harmful", "harmless", "borderline", "ordinary")
TRANSLATED: Final = ("de", "es", "fr", "it", "pt", "hi", "zh", "ja")
MAX_LINE_BYTES: Final = 64 * 1024
MAX_FILE_BYTES: Final = 64 * 1024 * 1024

# 199 ordinary answers are the fewest from which a limit that 0.5 % exceed can be told (policy_fit),
# 33 borderline ones for 3 %.
RECALIBRATION_COUNTS: Final[Mapping[Label, int]] = {
    "ordinary": 200,
    "borderline": 40,
    "harmful": 60,
    "harmless": 30,
}
REPLAY_COUNTS: Final[Mapping[Label, int]] = {"ordinary": 60, "borderline": 40, "harmful": 60}
_REINSTALL: Final = "reinstall safesteer-edge"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PAIR_SIDES: Final[tuple[Label, ...]] = ("harmful", "harmless")
_SINGLES: Final[tuple[tuple[Label, str], ...]] = (
    ("borderline", "borderline.jsonl"),
    ("ordinary", "ordinary.jsonl"),
    ("ordinary", "others.jsonl"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. group: its scenario or kind; language: BCP 47, "und" where a file has none.

    pair_id joins a harmful request to the harmless one that was written beside it; else None.
    image: a picture that the text is asked about. named: the same request in words alone, with the
    name of what the picture shows. audio: a recording of the text.
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
    named: str | None = None

    @property
    def is_translated(self) -> bool:
        """Whether it is one of the package's own in another language."""
        return self.id.startswith(f"{self.language}/")


@dataclass(frozen=True, slots=True)
class Row:
    """What one line of JSONL holds. Its texts are not empty, and can be written as UTF-8."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{field.name!r} is {value[:40]!r}; expected a text with a word")
            # JSON can spell a lone surrogate (\ud800), which no tokenizer or file can take.
            if isinstance(value, str) and _SURROGATE.search(value):
                raise ValueError(f"{field.name!r} holds half of a surrogate pair")


@dataclass(frozen=True, slots=True)
class _UserRow(Row):
    text: str
    label: Label
    split: Split | None = None
    id: str | None = None
    group: str = "user"
    language: str = "und"  # BCP 47: not known
    image: str | None = None
    audio: str | None = None
    named: str | None = None


@dataclass(frozen=True, slots=True)
class _PairRow(Row):
    id: str
    scenario: str
    harmful: str
    harmless: str
    split: Split


@dataclass(frozen=True, slots=True)
class _SingleRow(Row):
    id: str
    kind: str
    text: str
    split: Split
    language: str = "en"


@dataclass(frozen=True, slots=True)
class _TranslatedRow(Row):
    of: str  # the id of the English request
    text: str


_AnyRow = TypeVar("_AnyRow", bound=Row)


def load_requests(
    *, splits: Collection[Split] | None = None, labels: Collection[Label] | None = None
) -> tuple[Request, ...]:
    """Return the package's own requests of these splits and labels (None: of all), in file order.

    Pairs come first (harmful, then its harmless twin), then borderline, then ordinary requests, and
    then ordinary ones by other hands.
    Raises SettingsError for an unknown split or label, RequestDataError for a damaged installation.
    """
    wanted_splits = _checked_choices(splits, SPLITS, "split")
    wanted_labels = _checked_choices(labels, LABELS, "label")
    found: list[Request] = []
    if not wanted_labels.isdisjoint(_PAIR_SIDES):
        for pair in package_rows("pairs.jsonl", _PairRow):
            for side in _PAIR_SIDES:
                place = (pair.scenario, pair.split, "en", pair.id)
                found.append(Request(f"{pair.id}/{side}", getattr(pair, side), side, *place))
    for label, name in _SINGLES:
        if label in wanted_labels:
            for row in package_rows(name, _SingleRow):
                place = (row.kind, row.split, row.language)
                found.append(Request(row.id, row.text, label, *place))
    return tuple(r for r in found if r.split in wanted_splits and r.label in wanted_labels)


def load_translated(
    languages: Collection[str] = TRANSLATED,
    *,
    splits: Collection[Split] | None = None,
    labels: Collection[Label] | None = None,
) -> tuple[Request, ...]:
    """Return the package's own requests in these languages, chosen as `load_requests` does.

    Each is in the split, and has the label and group, of the request that it translates, so that no
    request is trained on in one language and tested in another.
    Raises SettingsError for an unknown choice, RequestDataError for a damaged installation.
    """
    wanted_languages = _checked_choices(languages, TRANSLATED, "language")
    chosen = {request.id for request in load_requests(splits=splits, labels=labels)}
    sources = {request.id: request for request in load_requests()}
    found: list[Request] = []
    for language in (code for code in TRANSLATED if code in wanted_languages):
        name = f"languages/{language}.jsonl"
        line_of: dict[str, int] = {}
        for number, row in _numbered_package_rows(name, _TranslatedRow):
            if row.of not in sources:
                problem = f"no request has the id {row.of[:60]!r}"
            elif line_of.setdefault(row.of, number) != number:
                problem = f"line {line_of[row.of]} translates {row.of!r} too"
            else:
                if row.of in chosen:
                    found.append(_translated(sources[row.of], language, row.text))
                continue
            raise _line_error(f"the package's {name!r}", number, f"{problem}; {_REINSTALL}")
    return tuple(found)


def read_requests(path: Path) -> tuple[Request, ...]:
    """Return the requests of a user's JSONL file, in file order.

    One object per line: {"text", "label"}, and if wanted "split", "id", "group", "language", and
    "image" or "audio": a file, by its path from where the JSONL file is; beside an image, "named".
    A row without a split gets `split_of_text`'s; blank lines are skipped. Lines and file are
    bounded.
    Raises RequestDataError naming file, line, problem and remedy; a text that stands in two splits
    or under two labels, an id used twice, or a file that is missing is such a problem.
    """
    source = repr(str(path))
    requests: dict[int, Request] = {}
    remedy = "give the path of a readable JSONL file of requests"
    with os_errors_as(RequestDataError, f"cannot read {source}", remedy), path.open("rb") as stream:
        for number, row in _read_rows(stream, source, _UserRow):
            try:
                requests[number] = _user_request(row, number, path)
            except BadValueError as error:
                raise _line_error(source, number, f"{error}; correct it") from error
    if not requests:
        raise RequestDataError(
            f'cannot use {source}: it holds no requests; write one {{"text": …, "label": …}} a line'
        )
    _refuse_contradictions(requests, source)
    return tuple(requests.values())


def package_rows(name: str, kind: type[_AnyRow]) -> list[_AnyRow]:
    """The rows of one of the package's own files. Raises RequestDataError if it is damaged."""
    return [row for _, row in _numbered_package_rows(name, kind)]


def recalibration_requests() -> tuple[Request, ...]:
    """Some requests of the train and calibration splits: 330 of the package's own."""
    return spread(load_requests(splits=("train", "calibration")), RECALIBRATION_COUNTS)


def replay_requests(limit: int | None = None) -> tuple[Request, ...]:
    """160 requests of the test split. limit: of each label at most, out of those."""
    requests = held_out_requests()
    whole = spread(requests, REPLAY_COUNTS)
    return whole if limit is None else spread(whole, dict.fromkeys(REPLAY_COUNTS, limit))


def held_out_requests(limit: int | None = None) -> tuple[Request, ...]:
    """All requests of the test split, harmless twins aside. limit: of each label at most."""
    requests = load_requests(splits=("test",), labels=tuple(REPLAY_COUNTS))
    return spread(requests, dict.fromkeys(REPLAY_COUNTS, limit or len(requests)))


def spread(requests: Sequence[Request], counts: Mapping[Label, int]) -> tuple[Request, ...]:
    """At most so many of each label, evenly spread over those there are, in their order.

    Files are sorted by scenario or kind: the first ones would be of a few kinds only.
    """
    picked: list[Request] = []
    for label, count in counts.items():
        found = [request for request in requests if request.label == label]
        n = min(count, len(found))
        picked += [found[index * len(found) // n] for index in range(n)]
    return tuple(picked)


def requests_sha256(requests: Sequence[Request]) -> str:
    """What tells one list of requests from another: their ids, labels and texts, in order."""
    digest = hashlib.sha256()
    for request in requests:
        for part in (request.id, request.label, request.text):
            digest.update(part.encode("utf-8") + b"\0")
    return digest.hexdigest()


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


def lot_of(text: str) -> int:
    """A number in [0, 2**32) of the text alone: what draws the same at each time and everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _numbered_package_rows(name: str, kind: type[_AnyRow]) -> list[tuple[int, _AnyRow]]:
    source = f"the package's {name!r}"
    file = resources.files("safesteer_edge.requests") / "data" / name
    with (
        os_errors_as(RequestDataError, f"cannot read {source}", _REINSTALL),
        file.open("rb") as stream,
    ):
        return list(_read_rows(stream, source, kind))


def _translated(source: Request, language: str, text: str) -> Request:
    pair_id = source.pair_id and f"{language}/{source.pair_id}"
    return replace(
        source, id=f"{language}/{source.id}", text=text, language=language, pair_id=pair_id
    )


def _read_rows(
    stream: IO[bytes], source: str, kind: type[_AnyRow]
) -> Iterator[tuple[int, _AnyRow]]:
    """The checked rows of a JSONL stream, each with its line's number; blank lines are skipped.

    Holds one line of at most MAX_LINE_BYTES, and reads MAX_FILE_BYTES at most, so that a device
    or a pipe without an end stops too. Raises RequestDataError.
    """
    size_bytes = line_number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        line_number += 1
        size_bytes += len(raw)
        if len(raw) > MAX_LINE_BYTES:
            problem = f"longer than {MAX_LINE_BYTES} bytes"
            raise _line_error(source, line_number, f"{problem}; put one JSON object on each line")
        if size_bytes > MAX_FILE_BYTES:
            problem = f"the file is larger than {MAX_FILE_BYTES} bytes"
            raise _line_error(source, line_number, f"{problem}; split it into several")
        if line_number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # Windows editors write this mark
        if raw.strip():
            try:
                yield line_number, _row(raw, kind)
            except BadValueError as error:
                problem = f"{error}; correct that line, or remove it"
                raise _line_error(source, line_number, problem) from error


def _row(raw: bytes, kind: type[_AnyRow]) -> _AnyRow:
    try:
        value = load_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadValueError(f"not UTF-8 (byte {raw[error.start]:#04x})") from error
    if isinstance(value, dict) and None in value.values():
        raise BadValueError("it has a null; expected a value, or no such key")
    return from_json(kind, value)


def _line_error(source: str, line_number: int, problem: str) -> RequestDataError:
    return RequestDataError(f"{source}, line {line_number}: {problem}")


def _user_request(row: _UserRow, number: int, path: Path) -> Request:
    if row.image and row.audio:
        raise BadValueError("it has an 'image' and an 'audio'; expected one of them")
    if row.named and not row.image:
        raise BadValueError("it has 'named' and no 'image'; add the picture that it puts in words")
    image, audio = (_media_file(path.parent, name) for name in (row.image, row.audio))
    # "What is this?" is asked about many pictures.
    deciding = f"{row.text} {row.image}" if row.image else row.text
    return Request(
        id=row.id or f"{path.stem}-{number:04d}",
        text=row.text,
        label=row.label,
        group=row.group,
        split=row.split or split_of_text(deciding),
        language=row.language,
        image=image,
        audio=audio,
        named=row.named,
    )


def _media_file(folder: Path, name: str | None) -> Path | None:
    if name is not None and not (folder / name).is_file():
        raise BadValueError(f"{str(folder / name)!r} is no file")
    return None if name is None else folder / name


def _refuse_contradictions(requests: dict[int, Request], source: str) -> None:
    """requests: by their lines."""
    line_of_id: dict[str, int] = {}
    # The same words about another picture are another request.
    first_of_text: dict[tuple[str, Path | None], tuple[int, Request]] = {}
    for line, request in requests.items():
        id_line = line_of_id.setdefault(request.id, line)
        key = (_normalised(request.text), request.image)
        first_line, first = first_of_text.setdefault(key, (line, request))
        same = f"in line {first_line} with the same text"
        if id_line != line:
            problem = f"id {request.id[:60]!r} is that of line {id_line}; change one"
        elif first.label != request.label:
            problem = (
                f"labelled {request.label!r}, but {first.label!r} {same}; remove the wrong one"
            )
        elif first.split != request.split:
            problem = (
                f"in split {request.split!r}, but in {first.split!r} {same}; keep a text in one "
                "split, or the test measures what was trained on"
            )
        else:
            continue
        raise _line_error(source, line, problem)


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
            f" {', '.join(map(repr, allowed))}"
        )
    return frozenset(chosen)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
