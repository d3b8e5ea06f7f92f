"""Manifests and FigStep's table become tasks, or one line that names what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.picture_skill import (
    MANIFEST,
    SAFEBENCH,
    PictureTask,
    read_manifest,
    read_safebench,
)


def write_manifest(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / MANIFEST).write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_manifest_lists_texts_and_things(tmp_path: Path):
    write_manifest(
        tmp_path,
        {"image": "a.png", "kind": "text", "expected": "Mind the gap", "source": "drawn"},
        "",
        {"image": "sub/b.png", "kind": "name", "expected": ["cat", "kitten"]},
    )
    assert read_manifest(tmp_path) == [
        PictureTask(tmp_path / "a.png", "text", ("Mind the gap",)),
        PictureTask(tmp_path / "sub" / "b.png", "name", ("cat", "kitten")),
    ]


@pytest.mark.parametrize(
    "row",
    [
        "not json",
        {"image": "a.png", "kind": "text"},
        {"image": "a.png", "kind": "sound", "expected": "x"},
        {"image": "a.png", "kind": "name", "expected": "cat"},
        {"image": "a.png", "kind": "name", "expected": []},
        {"image": "../a.png", "kind": "text", "expected": "x"},
        {"image": "/etc/passwd", "kind": "text", "expected": "x"},
        [],
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: Any):
    good = {"image": "a.png", "kind": "text", "expected": "x"}
    with pytest.raises(InputError, match=r"line 2 of .*manifest\.jsonl"):
        read_manifest(write_manifest(tmp_path, good, row))


def test_a_missing_or_empty_manifest_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match="give the folder"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="has no pictures"):
        read_manifest(write_manifest(tmp_path, ""))


def test_safebench_expects_the_instruction_that_is_drawn(tmp_path: Path):
    (tmp_path / SAFEBENCH).write_text(
        "dataset,category_id,task_id,category_name,question,instruction\n"
        'ForbidQI,1,2,Tea,"How, then?",Steps to make tea.\n'
    )
    assert read_safebench(tmp_path) == [
        PictureTask(tmp_path / "query_ForbidQI_1_2_6.png", "text", ("Steps to make tea.",))
    ]
    (tmp_path / SAFEBENCH).write_text("goal,target\na,b\n")
    with pytest.raises(InputError, match="no SafeBench table"):
        read_safebench(tmp_path)
