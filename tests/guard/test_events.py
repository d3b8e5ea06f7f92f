"""Events survive JSON, and nothing else is taken for an event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.events import (
    Candidate,
    Event,
    GuardSummary,
    MediaPrepared,
    PrefillDone,
    Refused,
    Steered,
    Step,
    TextDelta,
    Timings,
    TurnEnded,
    TurnsLeftOut,
    Usage,
    event_from_json,
    event_to_json,
)
from tests.guard.scripted_answers import no_scores, through_json

# No NaN and no infinity: JSON has none, and the guard lets none through.
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_scores = st.floats(0.0, 1.0)
_maybe = st.none() | _scores
_candidates = st.builds(Candidate, logprob=_numbers, score=_scores)
_guards = st.builds(GuardSummary, max_score=_maybe, mean_score=_maybe, risk=_maybe)
_timings = st.builds(Timings, _numbers, _numbers, _numbers, _numbers, _numbers)
# What is not given is drawn from its annotation.
_EVENTS: dict[type[Any], st.SearchStrategy[Event]] = {
    MediaPrepared: st.builds(MediaPrepared, seconds=_numbers, encode_s=_numbers),
    PrefillDone: st.builds(PrefillDone, prefill_s=_numbers, prompt_score=_maybe),
    Step: st.builds(
        Step,
        logprob=_numbers,
        score=_maybe,
        risk=_maybe,
        candidates=st.lists(_candidates, max_size=4).map(tuple),
    ),
    TextDelta: st.builds(TextDelta),
    TurnsLeftOut: st.builds(TurnsLeftOut),
    Steered: st.builds(Steered),
    Refused: st.builds(Refused),
    TurnEnded: st.builds(
        TurnEnded, guard=_guards, timings=_timings, refusal=st.none() | st.builds(Refused)
    ),
}

EXAMPLE = TurnEnded(
    text="No.",
    finish_reason="refused",
    guard=GuardSummary("steer", "lazy", "tiny", 1, 9, 0.9, 0.5, 0.4, True, False),
    usage=Usage(12, 0, 3, 2, 3),
    timings=Timings(0.1, 0.2, 0.3, 0.01, 6.5),
    refusal=Refused("risk_limit", "the answer was turning harmful", "No.", 4, 4),
)


@pytest.mark.parametrize("kind", get_args(Event))
@given(data=st.data())
def test_every_event_survives_json(kind: type[Any], data: st.DataObject):
    event = data.draw(_EVENTS[kind])
    assert through_json(event) == event


@given(no_scores, st.sampled_from(["max_score", "mean_score", "risk"]))
def test_a_summary_with_what_is_no_score_or_risk_cannot_be_made(value: float, name: str):
    with pytest.raises(GuardError, match=f"{name} is .*cannot judge"):
        replace(EXAMPLE.guard, **{name: value})  # pyright: ignore[reportArgumentType]
    data = event_to_json(EXAMPLE)
    data["guard"][name] = value
    with pytest.raises(GuardError, match=name):
        event_from_json(data)


@given(no_scores)
def test_no_event_tells_what_is_no_score_or_risk(value: float):
    step = Step(1, 7, "a", 0.0, 0.5, True, 0.5)
    prefill = PrefillDone(1, 0, 0, 0.1, False, 0.5)
    wrong = [(step, "score"), (step, "risk"), (prefill, "prompt_score")]
    for event, name in [*wrong, (Candidate(7, 0.0, 0.5), "score")]:
        with pytest.raises(GuardError, match="cannot judge"):
            replace(event, **{name: value})  # pyright: ignore[reportArgumentType]


def test_the_kind_stands_under_event():
    kinds = [event_to_json(event)["event"] for event in (TextDelta("a"), EXAMPLE)]
    assert kinds == ["text_delta", "turn_ended"]
    assert event_to_json(TextDelta("a", "reasoning", 7)) == {
        "event": "text_delta",
        "text": "a",
        "part": "reasoning",
        "start": 7,
    }


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"event": "no_such_event"},
        {"event": None},
        {"event": []},
        {"event": "text_delta"},
        {"event": "text_delta", "text": "a", "more": 1},
        {"event": "step"},
        {**event_to_json(EXAMPLE), "guard": None},
        {**event_to_json(EXAMPLE), "usage": {"prompt_tokens": 1}},
        {**event_to_json(Step(1, 2, "", 0.0, 0.1, True, 0.1)), "candidates": [{"token_id": 1}]},
    ],
)
def test_anything_else_is_refused(data: dict[str, Any]):
    with pytest.raises((KeyError, TypeError)):
        event_from_json(data)


def test_reading_an_event_leaves_the_data_as_it_was():
    data = event_to_json(EXAMPLE)
    event_from_json(data)
    assert data == event_to_json(EXAMPLE)
    assert through_json(PrefillDone(5, 0, 2, 0.1, False, None)) == PrefillDone(
        5, 0, 2, 0.1, False, None
    )
