"""Questions with answers, for helpfulness: MM-Vet and ScienceQA."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from safesteer_edge.evaluation.readers.tables import (
    RowError,
    SuiteBuilder,
    image_at,
    json_entries,
    text_of,
)
from safesteer_edge.evaluation.suites.case import Case, PictureStore, Suite, safe_id

_OR = "<OR>"
_LETTERS = "ABCDEFGHIJ"


def read_mm_vet(path: Path, _pictures: PictureStore) -> Suite:
    """mm-vet.json, images in `images/` beside it.

    Its answers are words joined by <AND> and <OR>; an answer counts as right here if it holds the
    words, where MM-Vet's own score is a language model's from 0 to 1: lower bounds of it.
    """
    builder = SuiteBuilder(path, "mm-vet")
    for name, entry in json_entries(path):
        try:
            question = text_of(entry, "question")
            builder.add(
                Case(
                    safe_id(name),
                    builder.name,
                    "benign",
                    _capability(entry),
                    question,
                    (question,),
                    image=image_at(path.parent / "images" / _file_name(entry, "imagename")),
                    expected=tuple(part.strip() for part in text_of(entry, "answer").split(_OR)),
                ),
                name,
            )
        except RowError as error:
            builder.fail(f"entry {name}", str(error))
    return builder.suite()


def read_science_qa(path: Path, _pictures: PictureStore) -> Suite:
    """problems.json (its test split, where it has splits), images in `images/SPLIT/ID/`."""
    builder = SuiteBuilder(path, "scienceqa")
    for name, entry in json_entries(path):
        try:
            split = text_of(entry, "split", default="test")
            if split != "test":
                continue
            question, choices = text_of(entry, "question"), _choices(entry)
            hint = text_of(entry, "hint", default="")
            listed = "\n".join(f"{_LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
            text = "\n".join(part for part in (hint, question, listed) if part)
            builder.add(
                Case(
                    safe_id(name),
                    builder.name,
                    "benign",
                    text_of(entry, "subject", default="") or "science",
                    question,
                    (f"{text}\nAnswer with the letter of the right choice.",),
                    image=_science_image(path, name, split, entry),
                    expected=(choices[_answer_index(entry, len(choices))],),
                    choices=choices,
                ),
                name,
            )
        except RowError as error:
            builder.fail(f"entry {name}", str(error))
    return builder.suite()


def _members(entry: object) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise RowError("not an object")
    return cast("dict[str, object]", entry)


def _capability(entry: object) -> str:
    value = _members(entry).get("capability")
    if isinstance(value, list):
        return "+".join(sorted(str(item) for item in cast("list[object]", value))) or "other"
    return "other"


def _file_name(entry: object, key: str) -> str:
    """A file's name that stays in its folder."""
    name = text_of(entry, key)
    if Path(name).name != name:
        raise RowError(f"{key!r} is {name!r}, not a file's name")
    return name


def _choices(entry: object) -> tuple[str, ...]:
    value = _members(entry).get("choices")
    items = cast("list[object]", value) if isinstance(value, list) else []
    choices = tuple(item for item in items if isinstance(item, str) and item.strip())
    if not 2 <= len(choices) <= len(_LETTERS) or len(choices) != len(items):
        raise RowError(f"'choices' must be 2 to {len(_LETTERS)} texts")
    return choices


def _answer_index(entry: object, n_choices: int) -> int:
    value = _members(entry).get("answer")
    if type(value) is not int or not 0 <= value < n_choices:
        raise RowError(f"'answer' is {value!r}, not the index of a choice")
    return value


def _science_image(path: Path, name: str, split: str, entry: object) -> Path | None:
    if _members(entry).get("image") in (None, ""):
        return None
    file_name = _file_name(entry, "image")
    return image_at(
        path.parent / "images" / safe_id(split) / safe_id(name) / file_name,
        path.parent / safe_id(split) / safe_id(name) / file_name,
    )
