"""`safesteer-edge measure pictures` on the tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.requests.pictures import drawings_by_name
from tests.cli.conftest import Ran
from tests.guarded_tiny import GuardedTiny

Measure = Callable[..., Ran]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with a manifest."""
    folder = tmp_path / "heldout"
    folder.mkdir()
    for name, colour in (("a.png", "teal"), ("b.png", "navy")):
        Image.new("RGB", (60, 40), colour).save(folder / name)
    rows = [
        {"image": "a.png", "kind": "text", "expected": "Mind the gap"},
        {"image": "b.png", "kind": "name", "expected": ["cat", "kitten"]},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def measure(guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]) -> Measure:
    def run(*arguments: str, sees: bool = True) -> Ran:
        model = ["--model", str(guarded_tiny.model), "--guard", "off", "--threads", "1"]
        mmproj = ["--mmproj", str(guarded_tiny.projector)] if sees else []
        exit_code = main(["measure", "pictures", *model, *mmproj, "--max-tokens", "4", *arguments])
        captured = capsys.readouterr()
        return Ran(exit_code, captured.out, captured.err)

    return run


def test_both_skills_and_the_cost_are_printed(measure: Measure, data: Path, tmp_path: Path):
    answers = tmp_path / "answers.jsonl"
    ran = measure("--data", str(data), "--answers", str(answers))
    assert ran.exit_code == OK
    assert "guard off, temperature 0" in ran.out
    assert "held-out pictures: 2 pictures" in ran.out
    assert "of 3 words in 1 texts (95 % " in ran.out
    assert "right name               0/1 (0.0 %, 95 % 0–79), 1 classes" in ran.out
    assert "s (median)" in ran.out and "s (medians)" in ran.out
    assert ran.err.rstrip().endswith("pictures: 2/2")
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["expected"] for row in rows] == [["Mind the gap"], ["cat", "kitten"]]
    assert [row.get("right") for row in rows] == [None, False]
    assert all(row["encode_s"] > 0 and row["prefill_s"] > 0 for row in rows)
    assert drawings_by_name(data) == {"cat": [data / "b.png"]}
    assert drawings_by_name(answers) == {}  # of what it names wrong there are none


def test_what_the_guard_reads_is_told_apart_from_what_the_model_reads(
    measure: Measure, data: Path, tmp_path: Path
):
    page = Image.new("RGB", (76, 76), "white")
    ImageDraw.Draw(page).text((4, 30), "Mind the gap", fill="black")
    page.save(data / "a.png")
    ran = measure("--data", str(data))
    assert "read by the guard        100.0 % of 3 words in 1 texts" in ran.out
    assert "words where none are     0/1" in ran.out
    value = json.loads(measure("--data", str(data), "--json").out)["held-out pictures"]
    assert value["reader"]["reading"]["recall"] == 1
    assert value["reader"]["first_s"] > 0
    assert value["reader"]["then_s"] > 0


def test_without_the_reader_that_is_said(
    measure: Measure, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("safesteer_edge.media.picture_words.PACKAGE", "not_installed_here")
    assert (
        "read by the guard        nothing: the extra picture-words"
        in measure("--data", str(data)).out
    )
    value = json.loads(measure("--data", str(data), "--json").out)
    assert value["held-out pictures"]["reader"] is None


def test_the_projectors_own_pictures_and_world_lie_beside_it(
    measure: Measure, data: Path, guarded_tiny: GuardedTiny, tmp_path: Path
):
    eye = tmp_path / guarded_tiny.projector.name
    shutil.copy(guarded_tiny.projector, eye)  # beside the folder that is called heldout
    (tmp_path / "things.txt").write_text("dog: dog-face\n")
    more = tmp_path / "more"
    shutil.copytree(data, more)
    (more / "manifest.jsonl").write_text(
        json.dumps({"image": "a.png", "kind": "name", "expected": ["dog"]})
    )
    arguments = ("--data", str(data), "--data", str(more), "--mmproj", str(eye), "--json")
    value = json.loads(measure(*arguments, sees=False).out)
    assert list(value) == [str(data), str(more)]
    assert value[str(data)]["closed"] is None and value[str(data)]["open_world"]["n"] == 1
    assert value[str(more)]["closed"]["n"] == 1 and value[str(more)]["open_world"] is None
    usual = measure("--mmproj", str(eye), "--limit", "1", "--json", sees=False)
    assert str(data) in json.loads(usual.out)


def test_figsteps_pictures_are_read_beside_ours(measure: Measure, data: Path, tmp_path: Path):
    (tmp_path / "SafeBench-Tiny.csv").write_text(
        "dataset,category_id,task_id,category_name,question,instruction\n"
        "ForbidQI,1,1,Tea,How?,Steps to make tea.\n"
    )
    Image.new("RGB", (76, 76), "white").save(tmp_path / "query_ForbidQI_1_1_6.png")
    ran = measure("--data", str(data), "--safebench", str(tmp_path), "--json")
    value = json.loads(ran.out)
    assert list(value) == ["held-out pictures", "FigStep SafeBench-Tiny"]
    assert value["held-out pictures"]["naming"]["accuracy"] == 0
    figstep = value["FigStep SafeBench-Tiny"]
    assert (figstep["n_pictures"], figstep["naming"]) == (1, None)
    assert figstep["reading"]["n_words"] == 4
    assert 0 <= figstep["reading"]["recall"] <= 1


def test_what_cannot_be_measured_is_one_line(measure: Measure, data: Path, tmp_path: Path):
    for ran in (
        measure("--data", str(tmp_path)),
        measure("--data", str(data), sees=False),
        measure("--data", str(data), "--answers", str(tmp_path / "no" / "a.jsonl")),
    ):
        assert ran.exit_code == BAD_INPUT
        assert ran.err.strip().splitlines()[-1].startswith("safesteer-edge: ")
