"""What openings lead to, on a tiny model whose words mean nothing: every answer is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import get_args

import pytest

from safesteer_edge.evaluation.openings import (
    ReadAnswer,
    judge_again,
    measure_ceiling,
    measure_openings,
    read_answers,
)
from safesteer_edge.metrics.refusal_rules import AnswerLabel
from safesteer_edge.requests.requests import load_requests
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings
from tests.guarded_tiny import GuardedTiny
from tests.made_up_answers import made_up_request

REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(scope="module")
def runtime(guarded_tiny: GuardedTiny) -> Iterator[Runtime]:
    settings = SessionSettings(model=str(guarded_tiny.model), guard="off", n_ctx=512)
    with closing(open_runtime(settings)) as opened:
        yield opened


def test_every_answer_is_counted_under_its_opening_and_label(runtime: Runtime):
    requests = [made_up_request(label, n) for n in range(3) for label in ("harmful", "ordinary")]
    told: list[int] = []
    outcomes = measure_openings(runtime, requests, ("", REFUSAL), progress=told.append)
    assert told == [1, 2, 3, 4, 5, 6]
    assert {(found.opening, found.label) for found in outcomes} == {
        (opening, label) for opening in ("", REFUSAL) for label in ("harmful", "ordinary")
    }
    for found in outcomes:
        assert found.n == 3
        assert found.n == found.refused + found.redirected + found.complied + found.no_answer


def test_the_ceiling_counts_complying_answers_alone(runtime: Runtime):
    requests = [made_up_request("harmful", n) for n in range(3)]
    behind_a_refusal = measure_ceiling(runtime, requests, prefix=REFUSAL, n_candidates=3)
    assert behind_a_refusal.n <= 3
    by_itself = measure_ceiling(runtime, requests, n_candidates=3)
    assert len(by_itself.reached_by_rank) == 3
    assert by_itself.reachable <= by_itself.n <= 3
    assert by_itself.reached_by_rank[0] == 0  # the model's own choice complies, or is not counted


def test_read_answers_name_held_out_requests_and_known_labels():
    answers = read_answers()
    held_out = {request.id for request in load_requests(splits=("test",))}
    assert {read.request for read in answers} <= held_out
    assert {read.label for read in answers} == set(get_args(AnswerLabel))
    assert len({(read.model, read.request, read.opening) for read in answers}) == len(answers)
    assert len(answers) >= 300
    assert sum(read.read == "before" for read in answers) >= 150


def test_an_answer_is_made_again_and_told_by_its_hash(runtime: Runtime):
    request = load_requests(splits=("test",))[0]
    unknown = ReadAnswer("00", request.id, REFUSAL, "refused", "0" * 16, "before")
    [other] = judge_again(runtime, [unknown])
    assert not other.is_same and other.label in get_args(AnswerLabel)
    known = replace(unknown, answer=other.answer)
    assert [each.is_same for each in judge_again(runtime, [known, unknown])] == [True, False]
