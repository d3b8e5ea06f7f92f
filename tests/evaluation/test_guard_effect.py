"""What the guard changes, counted over the same requests with and without it."""

from __future__ import annotations

import math

from safesteer_edge.evaluation.heldout import Outcome, PairedOutcome, compare_with_off, summarise
from tests.guarded_tiny import ALARMED, PATIENT_POLICY, QUIET, WAVERING, GuardedTiny
from tests.made_up_answers import made_up_request
from tests.session.turns import opened

REQUESTS = [made_up_request(label, n) for n in range(2) for label in ("harmful", "ordinary")]


def outcome(text: str, *, refused: bool = False, passes: int = 10, decode_s: float = 1.0):
    return Outcome(text, refused, n_tokens=10, passes=passes, decode_s=decode_s, interventions=0)


def test_a_summary_is_counted_by_hand():
    request, other = made_up_request("harmful", 0), made_up_request("ordinary", 0)
    rows = [
        PairedOutcome(request, outcome("a"), outcome("a", passes=11, decode_s=2.0)),
        PairedOutcome(request, outcome("a"), outcome("no", refused=True, passes=20, decode_s=9.0)),
        PairedOutcome(request, outcome("no", refused=True), outcome("no", refused=True, passes=14)),
        PairedOutcome(other, outcome("b"), outcome("c")),
    ]
    effect = summarise(rows, "harmful")
    assert (effect.identical.count, effect.identical.n) == (2, 3)
    assert (effect.off_answered.count, effect.guarded_answered.count) == (2, 1)
    assert effect.passes_per_token == (11 + 20 + 14) / 30
    assert effect.speed_ratio == 2.0 / 3.0  # over identical answers: 1 + 1 s against 2 + 1 s
    assert math.isnan(summarise(rows, "borderline").passes_per_token)
    assert summarise(rows, "ordinary").identical.value == 0.0


def test_a_guard_that_finds_nothing_is_identical_and_costs_no_pass(guarded_tiny: GuardedTiny):
    with (
        opened(guarded_tiny, None) as off,
        opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as guarded,
    ):
        outcomes = compare_with_off(REQUESTS, off, guarded)
    for label in ("harmful", "ordinary"):
        effect = summarise(outcomes, label)
        assert (effect.identical.count, effect.identical.n) == (2, 2)
        assert (effect.off_answered.count, effect.guarded_answered.count) == (2, 2)
        assert effect.passes_per_token == 1.0
        assert effect.speed_ratio > 0


def test_a_guard_that_finds_everything_leaves_no_answer(guarded_tiny: GuardedTiny):
    n_done: list[int] = []
    with (
        opened(guarded_tiny, None) as off,
        opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as guarded,
    ):
        outcomes = compare_with_off(REQUESTS, off, guarded, progress=n_done.append)
    effect = summarise(outcomes, "harmful")
    assert (effect.off_answered.count, effect.guarded_answered.count) == (2, 0)
    assert effect.identical.count == 0
    assert n_done == [1, 2, 3, 4]


def test_a_steered_answer_costs_passes_and_is_no_refusal(guarded_tiny: GuardedTiny):
    with (
        opened(guarded_tiny, None) as off,
        opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as guarded,
    ):
        outcomes = compare_with_off(REQUESTS, off, guarded)
    effect = summarise(outcomes, "ordinary")
    assert effect.passes_per_token > 1.0
    assert effect.guarded_answered.count == 2
    assert all(row.guarded.interventions for row in outcomes)
    assert all(row.off.interventions == 0 for row in outcomes)


def test_each_request_begins_a_conversation(guarded_tiny: GuardedTiny):
    with (
        opened(guarded_tiny, None) as off,
        opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as guarded,
    ):
        (alone,) = compare_with_off(REQUESTS[1:2], off, guarded)
        last = compare_with_off([*REQUESTS, REQUESTS[1]], off, guarded)[-1]
    assert last.guarded.text == alone.guarded.text
    assert last.off.text == alone.off.text
