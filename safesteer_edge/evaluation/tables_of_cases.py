"""Bounded reading of CSV and JSON files that come from anyone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from safesteer_edge.errors import RequestDataError
from safesteer_edge.evaluation.case import (
    NO_ATTACK,
    Case,
    CaseKind,
    PictureStore,
    Suite,
    UnreadableRow,
    safe_id,
)
from safesteer_edge.formats.json_values import BadValueError, from_json, load_json, to_json

MAX_FILE_BYTES: Final = 256 * 1024 * 1024
MAX_TEXT_CHARACTERS: Final = 100_000


class RowError(Exception):
    """This row makes no case; the text says why."""


@dataclass(slots=True)
class SuiteBuilder:
    """Collects the cases of one file, and the rows that make none."""

    path: Path
    format: str
    cases: list[Case] = field(default_factory=list[Case])
    unreadable: list[UnreadableRow] = field(default_factory=list[UnreadableRow])
    _ids: set[str] = field(default_factory=set[str])

    @property
    def name(self) -> str:
        """The suite's: the format and the file's name."""
        return f"{self.format}:{self.path.stem}"

    def add(self, case: Case, where: str) -> None:
        """A case; one whose id is taken is a row that makes none."""
        if case.id in self._ids:
            self.fail(where, f"id {case.id!r} is there twice")
            return
        self._ids.add(case.id)
        self.cases.append(case)

    def fail(self, where: str, problem: str) -> None:
        """A row that makes no case."""
        self.unreadable.append(UnreadableRow(self.name, where, problem))

    def suite(self) -> Suite:
        """All of it. Raises RequestDataError if the file has no rows at all."""
        if not self.cases and not self.unreadable:
            raise RequestDataError(f"cannot use {str(self.path)!r}: it has no rows")
        return Suite(self.name, self.path.name, tuple(self.cases), tuple(self.unreadable))


def read_text_file(path: Path) -> str:
    """The text of a file. Raises RequestDataError if it is missing, too large or not UTF-8."""
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


def csv_rows(
    path: Path, columns: Sequence[Sequence[str]]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each row with where it is: the values under the first of each set of names that is there.

    Raises RequestDataError if a column is missing, naming those that are there. A row with too few
    or too many values has the key `_problem`.
    """
    reader = csv.reader(io.StringIO(read_text_file(path), newline=""))
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
            where = f"row {number}"
            if not values:
                continue  # a blank line
            if len(values) != len(header):
                problem = f"{len(values)} values for {len(header)} columns"
                yield where, {"_problem": problem}
                continue
            yield where, {name: values[i] for name, i in found.items()}
    except csv.Error as error:
        raise RequestDataError(
            f"cannot read {str(path)!r} as CSV: {error} (near line {reader.line_num})"
        ) from error


def json_entries(path: Path) -> Iterator[tuple[str, object]]:
    """The entries of a JSON object of objects, or a list of them, by name or number."""
    try:
        value = load_json(read_text_file(path))
    except BadValueError as error:
        raise RequestDataError(f"cannot read {str(path)!r} as JSON: {error}") from error
    if isinstance(value, dict):
        yield from ((str(k), v) for k, v in cast("dict[str, object]", value).items())
    elif isinstance(value, list):
        yield from ((str(i), v) for i, v in enumerate(cast("list[object]", value)))
    else:
        raise RequestDataError(f"{str(path)!r} is neither a JSON object nor a list")


def text_of(values: object, key: str, *, default: str | None = None) -> str:
    """A text of a row. Raises RowError if it is missing, empty, too long or no text."""
    if not isinstance(values, dict | Mapping):
        raise RowError("not an object")
    members = cast("Mapping[str, object]", values)
    problem = members.get("_problem")
    if isinstance(problem, str):
        raise RowError(problem)
    value = members.get(key, default)
    if not isinstance(value, str):
        raise RowError(f"no text under {key!r}")
    if not value.strip() and default is None:
        raise RowError(f"{key!r} is empty")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise RowError(f"{key!r} has {len(value)} characters; the limit is {MAX_TEXT_CHARACTERS}")
    return value.strip()


def image_at(*paths: Path) -> Path:
    """The first of these files that is there. Raises RowError."""
    for path in paths:
        if path.is_file():
            return path
    raise RowError(f"no image {paths[0].name!r} in {str(paths[0].parent)!r}")


def id_at(values: Mapping[str, str], key: str, where: str) -> str:
    """An id from a row's value, or from where it is."""
    return safe_id(values.get(key, "") or where)


# -- A user's own cases, one JSON object a line ----------------------------------------------------
# {"request": …, "kind": "harmful" | "borderline" | "benign"}, and if wanted "id", "category",
# "attack", "turns" (texts, the last one counts), "image" (a path beside the file),
# "answer_prefix", "expected" (answers that are right), "choices", "group".


@dataclass(frozen=True, slots=True)
class _CaseRow:
    request: str
    kind: CaseKind
    id: str = ""
    category: str = ""
    attack: str = ""
    turns: tuple[str, ...] = ()
    image: str = ""
    answer_prefix: str = ""
    expected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""


def read_jsonl(path: Path, _pictures: PictureStore) -> Suite:
    """The cases of a file; a line that is none of the above is listed as unreadable."""
    builder = SuiteBuilder(path, "jsonl")
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        where = f"line {number}"
        try:
            if line.strip():
                builder.add(_case(line, where, builder), where)
        except (RowError, BadValueError) as error:
            builder.fail(where, str(error))
    return builder.suite()


def _case(line: str, where: str, builder: SuiteBuilder) -> Case:
    row = from_json(_CaseRow, load_json(line))
    values = to_json(row)
    request = text_of(values, "request")
    texts = {key: text_of(values, key, default="") for key in values if type(values[key]) is str}
    for key in ("turns", "expected", "choices"):
        if not all(text.strip() for text in values[key]):
            raise RowError(f"{key!r} has an empty text")
    image = texts["image"]
    return Case(
        id=safe_id(texts["id"] or where),
        suite=builder.name,
        kind=row.kind,
        category=texts["category"] or "all",
        request=request,
        turns=row.turns or (request,),
        attack=texts["attack"] or NO_ATTACK,
        image=image_at(builder.path.parent / image) if image else None,
        given_text=texts["answer_prefix"],
        group=texts["group"] or None,
        expected=row.expected,
        choices=row.choices,
    )
