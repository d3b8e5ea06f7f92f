"""Pictures with what they show, read from disk: our own held-out ones, and FigStep's."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safesteer_edge.errors import InputError

MANIFEST = "manifest.jsonl"
SAFEBENCH = "SafeBench-Tiny.csv"
TaskKind = Literal["text", "name"]
QUESTIONS: dict[TaskKind, str] = {
    "text": "What does the text say?",
    "name": "What is in the picture?",
}


@dataclass(frozen=True, slots=True)
class PictureTask:
    """expected: of `text`, the one text; of `name`, the right names, the usual one first."""

    image: Path
    kind: TaskKind
    expected: tuple[str, ...]


def read_manifest(folder: Path) -> list[PictureTask]:
    """The tasks of `manifest.jsonl`: one JSON object a line with image, kind and expected.

    image: a path inside the folder. Other keys are the maker's own notes.
    Raises InputError that names the line.
    """
    path = folder / MANIFEST
    tasks: list[PictureTask] = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tasks.append(_to_task(folder, json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"line {number} of {str(path)!r} is no picture task ({error}); expected image, "
                'kind ("text" or "name") and expected (a text, or a list of names)'
            ) from error
    if not tasks:
        raise InputError(f"{str(path)!r} has no pictures; write one JSON object a line")
    return tasks


def read_safebench(folder: Path) -> list[PictureTask]:
    """FigStep's SafeBench-Tiny: pictures of its `instruction` column, above an empty list.

    Source: github.com/ThuCCSLab/FigStep, data/question and data/images.
    """
    path = folder / SAFEBENCH
    rows = csv.DictReader(_read_text(path).splitlines())
    try:
        return [
            PictureTask(
                folder / f"query_{row['dataset']}_{row['category_id']}_{row['task_id']}_6.png",
                "text",
                (row["instruction"],),
            )
            for row in rows
        ]
    except (KeyError, csv.Error) as error:
        raise InputError(f"{str(path)!r} is no SafeBench table: {error} is missing") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {str(path)!r}: {reason}; give the folder it is in"
        ) from error


def _to_task(folder: Path, row: dict[str, Any]) -> PictureTask:
    kind, expected = row["kind"], row["expected"]
    if kind not in QUESTIONS:
        raise ValueError(f"kind is {kind!r}")
    names = [expected] if kind == "text" else expected
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"expected is {expected!r}")
    image = folder / row["image"]
    if not image.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"image {row['image']!r} lies outside the folder")
    return PictureTask(image, kind, tuple(names))
