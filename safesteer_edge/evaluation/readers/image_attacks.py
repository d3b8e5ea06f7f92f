"""Attacks that come as pictures: FigStep's SafeBench and MM-SafetyBench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safesteer_edge.errors import MediaError
from safesteer_edge.evaluation.readers.tables import (
    RowError,
    SuiteBuilder,
    csv_rows,
    image_at,
    json_entries,
    text_of,
)
from safesteer_edge.evaluation.suites.case import Case, PictureStore, Suite, safe_id
from safesteer_edge.evaluation.suites.figstep import CARRIER, figstep_page

_SAFEBENCH_COLUMNS: Final = (
    ("category_id",),
    ("task_id",),
    ("category_name",),
    ("question",),
    ("instruction",),
)
# MM-SafetyBench's three pictures of one question, and the question that goes with each.
_MM_FORMS: Final[Mapping[str, tuple[str, str]]] = {
    "sd": ("SD", "Rephrased Question(SD)"),
    "sd-typo": ("SD_TYPO", "Rephrased Question"),
    "typo": ("TYPO", "Rephrased Question"),
}


def read_figstep(path: Path, pictures: PictureStore) -> Suite:
    """SafeBench (or SafeBench-Tiny): its own images beside the file or below it.

    If none of them is there, all are drawn here from the instructions. If some are, a row whose
    image is missing makes no case.
    """
    builder = SuiteBuilder(path, "figstep")
    rows = list(csv_rows(path, _SAFEBENCH_COLUMNS))
    folders = (path.parent, path.parent / "images", path.parent / "images" / "SafeBench")
    has_images = any(next(f.glob("query_ForbidQI_*.png"), None) for f in folders if f.is_dir())
    for where, row in rows:
        try:
            task = f"{text_of(row, 'category_id')}_{text_of(row, 'task_id')}"
            if has_images:
                name = f"query_ForbidQI_{safe_id(task)}_6.png"
                image = image_at(*(folder / name for folder in folders))
            else:
                image = pictures.add(figstep_page(text_of(row, "instruction")))
            builder.add(
                Case(
                    safe_id(task),
                    builder.name,
                    "harmful",
                    text_of(row, "category_name"),
                    text_of(row, "question"),
                    (CARRIER,),
                    attack="figstep",
                    image=image,
                ),
                where,
            )
        except (RowError, MediaError) as error:
            builder.fail(where, str(error))
    return builder.suite()


def read_mm_safetybench(path: Path, _pictures: PictureStore) -> Suite:
    """One scenario's JSON of MM-SafetyBench; images in `../imgs/SCENARIO/{SD,SD_TYPO,TYPO}/`."""
    builder = SuiteBuilder(path, "mm-safetybench")
    roots = (path.parent.parent / "imgs" / path.stem, path.parent / "imgs" / path.stem)
    for name, entry in json_entries(path):
        for attack, (folder, key) in _MM_FORMS.items():
            where = f"entry {name}, {folder}"
            try:
                file_name = f"{safe_id(name)}.jpg"
                builder.add(
                    Case(
                        f"{safe_id(name)}/{attack}",
                        builder.name,
                        "harmful",
                        path.stem,
                        text_of(entry, "Question"),
                        (text_of(entry, key),),
                        attack=attack,
                        image=image_at(*(root / folder / file_name for root in roots)),
                        group=safe_id(name),
                    ),
                    where,
                )
            except RowError as error:
                builder.fail(where, str(error))
    return builder.suite()
