"""What a model sees, from its answers; and the asking itself, on the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.evaluation.picture_skill import (
    PictureAnswer,
    PictureTask,
    TaskKind,
    ask_about_pictures,
    names_one_of,
    read_things,
    summarise,
)
from safesteer_edge.metrics.statistics import Share
from tests.guarded_tiny import GuardedTiny
from tests.session.turns import opened


def answered(kind: TaskKind, expected: Sequence[str], text: str) -> PictureAnswer:
    task = PictureTask(Path("a.png"), kind, tuple(expected))
    return PictureAnswer(task, text, 64, refused=text == "No.", added_s=0.25)


@pytest.mark.parametrize(
    ("names", "answer", "is_right"),
    [
        (["cat"], "A cat.", True),
        (["cat"], "Two cats", True),
        (["cat"], "a category", False),
        (["fire engine", "fire truck"], "It is a red Fire-Truck!", True),
        (["fire engine"], "an engine on fire", False),
        (["!"], "!", False),
        (["cat"], "", False),
    ],
)
def test_a_name_counts_as_whole_words(names: list[str], answer: str, is_right: bool):
    assert names_one_of(names, answer) == is_right


def test_texts_and_things_are_counted_apart():
    skill = summarise(
        [
            answered("text", ["Mind the gap"], "mind the cap"),
            answered("name", ["cat", "kitten"], "A kitten."),
            answered("name", ["Cat"], "No."),
            answered("name", ["dog"], "A dog"),
        ]
    )
    assert skill.reading is not None
    assert skill.naming is not None
    assert (skill.reading.n_found, skill.reading.n_words) == (2, 3)
    assert (skill.naming.count, skill.naming.n, skill.n_classes) == (2, 3, 2)
    assert (skill.n_pictures, skill.n_refused, skill.added_s) == (4, 1, 0.25)


def test_things_that_were_learnt_and_others_are_counted_apart_where_that_is_known(tmp_path: Path):
    answers = [
        answered("name", ["Cat"], "A cat"),
        answered("name", ["dog"], "A cat"),
        answered("name", ["teddy bear"], "A bear"),
    ]
    (tmp_path / "things.txt").write_text("# names: keys\ncat: pet\nteddy bear: set:bear !set:x\n")
    skill = summarise(answers, read_things(tmp_path / "things.txt"))
    assert (skill.naming, skill.closed, skill.open_world) == (
        Share(1, 3),
        Share(1, 2),
        Share(0, 1),
    )
    plain = summarise(answers)
    assert (plain.naming, plain.closed, plain.open_world) == (Share(1, 3), None, None)


def test_a_set_of_one_kind_says_nothing_of_the_other():
    assert summarise([answered("text", ["a"], "a")]).naming is None
    assert summarise([answered("name", ["a"], "a")]).reading is None
    assert summarise([]).added_s is None


def test_each_picture_is_asked_about_in_a_conversation_of_its_own(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    tasks: list[PictureTask] = []
    for name, colour in (("a.png", "teal"), ("b.png", "navy"), ("c.png", "teal")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / name)
        tasks.append(PictureTask(tmp_path / name, "text", ("x",)))
    n_done: list[int] = []
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector) as session:
        answers = ask_about_pictures(session, tasks, progress=n_done.append)
        alone = ask_about_pictures(session, tasks[2:])
    assert n_done == [1, 2, 3]
    assert [answer.n_tokens for answer in answers] == [4, 4, 4]
    assert answers[0].text == answers[2].text == alone[0].text
    assert all(answer.added_s is not None for answer in answers)
