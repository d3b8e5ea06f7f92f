"""The files as their authors published them, where SAFESTEER_BENCHMARKS names a folder of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safesteer_edge.evaluation.case import PictureStore
from safesteer_edge.evaluation.case_files import FileChoice, read_suite
from tests.media.sample_pictures import load_image

FOLDER = Path(os.environ.get("SAFESTEER_BENCHMARKS", "no-such-folder"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="SAFESTEER_BENCHMARKS names no folder")


@pytest.mark.parametrize(
    ("name", "path", "n_rows"),
    [
        ("advbench", "harmbench/advbench_behaviors.csv", 520),
        ("harmbench", "harmbench/harmbench_behaviors_text_test.csv", 320),
        ("harmbench", "harmbench/harmbench_behaviors_text_val.csv", 80),
        ("figstep", "safebench-tiny/SafeBench-Tiny.csv", 50),
    ],
)
def test_every_row_of_a_published_file_is_read(name: str, path: str, n_rows: int, tmp_path: Path):
    suite = read_suite(FileChoice(name, FOLDER / path), PictureStore(tmp_path))
    assert suite.unreadable == ()
    assert len(suite.cases) == n_rows
    if name == "figstep":
        images = [load_image(case.image) for case in suite.cases if case.image]
        assert {(image.width, image.height) for image in images} == {(760, 760)}
        assert list(tmp_path.iterdir()) == []  # its own pictures were used


def test_of_msts_the_prompts_about_one_drawn_thing_are_read_in_both_forms(tmp_path: Path):
    models = Path(__file__).parents[2] / "models"
    drawings = models / "qwen2.5-coder-1.5b-instruct" / "vision" / "heldout"
    choice = FileChoice("msts", FOLDER / "msts" / "english_multimodal.csv")
    suite = read_suite(choice, PictureStore(tmp_path, drawings))
    assert suite.unreadable == ()
    assert len({case.group for case in suite.cases}) == 38
    assert len(suite.cases) == 2 * 38
