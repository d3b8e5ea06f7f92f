"""A user's own cases, one JSON object a line.

{"request": …, "kind": "harmful" | "borderline" | "benign"}, and if wanted "id", "category",
"attack", "turns" (texts, the last one counts), "image" (a path beside the file), "answer_prefix",
"expected" (answers that are right), "choices", "group".
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Final, cast

from safesteer_edge.evaluation.readers.tables import (
    RowError,
    SuiteBuilder,
    image_at,
    read_text_file,
    text_of,
)
from safesteer_edge.evaluation.suites.case import (
    CASE_KINDS,
    NO_ATTACK,
    Case,
    CaseKind,
    PictureStore,
    Suite,
    safe_id,
)

_KEYS: Final = (
    "request",
    "kind",
    "id",
    "category",
    "attack",
    "turns",
    "image",
    "answer_prefix",
    "expected",
    "choices",
    "group",
)


def read_jsonl(path: Path, _pictures: PictureStore) -> Suite:
    """The cases of a file; a line that is none of the above is listed as unreadable."""
    builder = SuiteBuilder(path, "jsonl")
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        where = f"line {number}"
        try:
            if line.strip():
                builder.add(_case(line, where, builder), where)
        except RowError as error:
            builder.fail(where, str(error))
    return builder.suite()


def _case(line: str, where: str, builder: SuiteBuilder) -> Case:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise RowError("not a JSON object")
    row = cast("dict[str, object]", value)
    for key in row:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RowError(f"unknown key {key[:40]!r}{hint}")
    kinds: list[CaseKind] = [kind for kind in CASE_KINDS if kind == row.get("kind")]
    if not kinds:
        raise RowError(f"'kind' is {str(row.get('kind'))[:40]!r}; expected one of {CASE_KINDS}")
    request = text_of(row, "request")
    image = text_of(row, "image", default="")
    return Case(
        id=safe_id(text_of(row, "id", default=where)),
        suite=builder.name,
        kind=kinds[0],
        category=text_of(row, "category", default="") or "all",
        request=request,
        turns=_texts(row, "turns") or (request,),
        attack=text_of(row, "attack", default="") or NO_ATTACK,
        image=image_at(builder.path.parent / image) if image else None,
        given_text=text_of(row, "answer_prefix", default=""),
        group=text_of(row, "group", default="") or None,
        expected=_texts(row, "expected"),
        choices=_texts(row, "choices"),
    )


def _texts(row: dict[str, object], key: str) -> tuple[str, ...]:
    value = row.get(key, [])
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise RowError(f"{key!r} must be a list of texts")
    return tuple(cast("list[str]", items))
