"""A harvest in batches: the same answers as one by one, a shorter one's part of a longer one's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine.prompt_items import text_prompt
from safesteer_edge.harvest.answers import HarvestPlan, answers_to
from safesteer_edge.harvest.carriers import carried_items
from safesteer_edge.harvest.run import harvest, try_harvest
from safesteer_edge.harvest.units import planned_requests
from safesteer_edge.requests.requests import LABELS
from safesteer_edge.session.runtime import open_runtime
from tests.guarded_tiny import GuardedTiny
from tests.harvest.test_run import run, settings_for
from tests.made_up_answers import made_up_request

PLAN = HarvestPlan(10, 4, n_openings=1, n_answered=2, n_answered_benign=2, in_batches=True)
REQUESTS = tuple(made_up_request(label, n) for label in LABELS for n in range(4))
F16_TOLERANCE = 0.02


def in_batches(tiny: GuardedTiny, cache: Path, **plan: int):
    return replace(settings_for(tiny, cache), plan=replace(PLAN, **plan))


def test_batches_give_the_answers_that_come_one_by_one(guarded_tiny: GuardedTiny, tmp_path: Path):
    harvested, _ = run(in_batches(guarded_tiny, tmp_path), REQUESTS)
    found = {(a.request.id, a.kind): a for a in harvested.answers((0, 1, 2))}
    runtime = open_runtime(guarded_tiny.settings(None), layers=(0, 1, 2))
    try:
        for unit in harvested.units:
            for answer in answers_to(
                unit.request, runtime, PLAN, is_answered=unit.is_answered, piece=unit.piece
            ):
                ours = found.pop((answer.request.id, answer.kind))
                assert ours.token_ids == answer.token_ids
                assert (ours.text, ours.label) == (answer.text, answer.label)
                np.testing.assert_allclose(ours.states, answer.states, atol=F16_TOLERANCE)
    finally:
        runtime.close()
    assert not found


def test_what_a_smaller_plan_read_a_larger_one_does_not_read_again(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    small = in_batches(
        guarded_tiny, tmp_path, n_answered=1, n_answered_benign=1, n_read=2, n_read_ordinary=2
    )
    few, _ = run(small, REQUESTS)
    large, told = run(in_batches(guarded_tiny, tmp_path), REQUESTS)
    assert {unit.key for unit in few.units} < {unit.key for unit in large.units}
    known, own = (len(few.of(piece)[0]) for piece in ("known", "own"))
    assert known in told and own in told  # it began with what was there


def test_a_harvest_that_is_stopped_goes_on_after_its_last_batch(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    requests = [made_up_request(label, n) for label in LABELS for n in range(30)]
    settings = in_batches(guarded_tiny, tmp_path)

    def stop(_what: str, n_done: int, _n: int) -> None:
        if n_done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(settings, requests, stop)
    _, told = run(settings, requests)
    assert told[0] == 50


def test_a_trial_keeps_what_it_harvested(guarded_tiny: GuardedTiny, tmp_path: Path):
    settings = in_batches(guarded_tiny, tmp_path)
    trial = try_harvest(settings, REQUESTS)
    assert trial.each_s["known"] > 0 and trial.each_s["own"] > 0
    assert not any(trial.n_missing.values())  # so few requests are done with it
    assert run(settings, REQUESTS)[1] == [16, 8]
    again = try_harvest(settings, REQUESTS)
    assert not any(again.n_missing.values()) and again.each_s["own"] > 0


def test_pairs_stay_together_in_what_is_read(guarded_tiny: GuardedTiny, tmp_path: Path):
    requests = [made_up_request(label, n) for label in LABELS for n in range(40)]
    settings = in_batches(guarded_tiny, tmp_path, n_read=10, n_read_borderline=5)
    _, planned = planned_requests(settings, requests)
    pairs = {
        label: {each.request.pair_id for each in planned if each.request.label == label}
        for label in ("harmful", "harmless")
    }
    assert pairs["harmful"] == pairs["harmless"] and len(pairs["harmful"]) == 10
    assert len({e.request.id for e in planned if e.request.label == "borderline"}) == 5
    assert len({e.request.id for e in planned if e.request.label == "ordinary"}) == 40


def test_a_quarter_of_the_answered_requests_is_answered_among_other_words_too(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    requests = [made_up_request(label, n) for label in LABELS for n in range(100)]
    _, planned = planned_requests(in_batches(guarded_tiny, tmp_path, n_answered=50), requests)
    own = [unit for unit in planned if unit.piece == "own"]
    plain, wrapped = (
        {unit.request.id for unit in own if unit.carrier == carrier}
        for carrier in ("text", "wrapped")
    )
    assert wrapped < plain and {unit.carrier for unit in own} == {"text", "wrapped"}
    assert 0.15 < len(wrapped) / len(plain) < 0.35
    assert all(unit.is_answered for unit in own)


def test_what_people_write_next_is_read_behind_an_exchange_about_something_else(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    requests = [made_up_request(label, n) for label in LABELS for n in range(100)]
    next_ones = [
        replace(made_up_request("ordinary", n), group="follow_up") for n in range(100, 105)
    ]
    _, planned = planned_requests(in_batches(guarded_tiny, tmp_path), [*requests, *next_ones])
    carriers = {(unit.request.id, unit.carrier) for unit in planned}
    for request in next_ones:
        assert (request.id, "text") in carriers and (request.id, "later") in carriers
        assert (request.id, "wrapped") not in carriers
    later = [unit for unit in planned if unit.carrier == "later"]
    assert 0.1 < (len(later) - len(next_ones)) / len(requests) < 0.2
    assert not any(unit.is_answered for unit in later)
    runtime = open_runtime(guarded_tiny.settings(None))
    try:
        asked, alone = (
            text_prompt(carried_items(next_ones[0], carrier, runtime))
            for carrier in ("later", "text")
        )
    finally:
        runtime.close()
    assert len(asked.token_ids) > len(alone.token_ids) + 10
    words, same_words = (
        [prompt.token_ids[place] for place in prompt.message] for prompt in (asked, alone)
    )
    assert words == same_words  # what is judged is the last message
