"""Worker processes: every item gets a row, also when a process dies at it."""

from __future__ import annotations

from collections import Counter

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.answering import AnswerSettings, Item, answer_all
from safesteer_edge.evaluation.baselines import NO_BASELINES
from safesteer_edge.evaluation.case import Case
from safesteer_edge.evaluation.defences import OFF
from safesteer_edge.session.settings import SessionSettings
from tests.evaluation.workers import cannot_start, dies_at_bad_cases

SETTINGS = AnswerSettings(SessionSettings(), NO_BASELINES, top_k=8)


def items(*ids: str) -> list[Item]:
    return [(OFF, Case(name, "suite", "benign", "all", name, (name,))) for name in ids]


def test_every_item_gets_a_row_and_a_death_costs_one():
    names = ["a", "bad1", "b", "c", "bad2", "bad3", "d", "e"]
    rows = list(answer_all(items(*names), SETTINGS, n_workers=2, answers=dies_at_bad_cases))
    assert sorted(row.case_id for row in rows) == sorted(names)
    status = {row.case_id: row.status for row in rows}
    assert {name for name in names if status[name] == "crashed"} == {"bad1", "bad2", "bad3"}
    assert all("exit code 9" in row.error for row in rows if row.status == "crashed")
    assert Counter(status.values()) == {"ok": 5, "crashed": 3}


def test_the_work_is_shared():
    rows = list(answer_all(items(*"abcdef"), SETTINGS, n_workers=3, answers=dies_at_bad_cases))
    assert len({row.answer for row in rows}) == 3


def test_a_model_that_cannot_be_opened_ends_the_run():
    with pytest.raises(InputError, match=r"x\.gguf"):
        list(answer_all(items("a", "b"), SETTINGS, n_workers=2, answers=cannot_start))


def test_nothing_to_do_starts_nothing():
    assert list(answer_all([], SETTINGS, n_workers=2)) == []
