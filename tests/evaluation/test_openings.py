"""What openings lead to, on a tiny model whose words mean nothing: every answer is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from safesteer_edge.evaluation.openings import measure_ceiling, measure_openings
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
        assert found.n == found.refused + found.complied + found.no_answer == 3


def test_the_ceiling_counts_complying_answers_alone(runtime: Runtime):
    requests = [made_up_request("harmful", n) for n in range(3)]
    behind_a_refusal = measure_ceiling(runtime, requests, prefix=REFUSAL, n_candidates=3)
    assert behind_a_refusal.n <= 3
    by_itself = measure_ceiling(runtime, requests, n_candidates=3)
    assert len(by_itself.reached_by_rank) == 3
    assert by_itself.reachable <= by_itself.n <= 3
    assert by_itself.reached_by_rank[0] == 0  # the model's own choice complies, or is not counted
