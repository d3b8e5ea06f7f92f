"""Beginning anew: the model's own likely beginnings, weighed by what they lead to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer_edge.guard.events import Refused, Steered
from safesteer_edge.guard.policy import N_LOOKED_AHEAD
from safesteer_edge.guard.protocols import Proposal
from safesteer_edge.guard.reranking import choose_by_odds
from tests.guard.exact_law import EDGE_ERROR, exact_law
from tests.guard.plain_probes import PlainProbe, by_token
from tests.guard.scripted_answers import END, POLICY, REFUSAL_TEXT, ScriptedAnswer, refusal_tokens
from tests.guard.scripted_engine import Prefix, ScriptedEngine

_HARM, _SORRY, _CANNOT, _STORY, _FULL_STOP = 1, 2, 3, 4, 5
_OPENING = "No way"
_STEERING = replace(
    POLICY,
    threshold=0.3,
    risk_limit=0.5,
    risk_min_steps=2,
    steer_from=0.2,
    retries=2,
    opening_share=0.9,
    look_ahead=3,
    look_ahead_limit=0.1,
)
_SCORES = {_HARM: 0.9, _STORY: 0.25, _SORRY: 0.4, _CANNOT: 0.01}


def shallow_model(*, refuses: bool = True) -> ScriptedAnswer:
    """It says harm, and would refuse if it began otherwise, which is unlikely."""

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        if len(prefix) >= 8:
            return {END: 1.0}
        if not prefix:
            return {_HARM: 0.8, _STORY: 0.15, _SORRY if refuses else _HARM + 90: 0.05}
        if prefix[0] == _SORRY:
            return {_CANNOT if len(prefix) < 5 else END: 1.0}
        return {prefix[0] if prefix[0] in _SCORES else _FULL_STOP: 1.0}

    pieces = {_HARM: b" bad", _STORY: b" tale", _SORRY: b"Sorry", _CANNOT: b" no", _FULL_STOP: b"."}
    pieces |= {token_id: bytes([token_id - 10_000]) for token_id in refusal_tokens(_OPENING)}
    return ScriptedAnswer(
        engine=ScriptedEngine(next_tokens, pieces, end_ids={END}),
        probe=PlainProbe(lambda _position, token_id: _SCORES.get(token_id, 0.2)),
        policy=_STEERING,
        openings=(_OPENING,),
    )


def test_an_answer_that_begins_anew_finds_the_models_own_refusal_behind_an_unlikely_token():
    script = shallow_model()
    answer = script.decode()
    assert answer.text == "Sorry no no no no"
    assert (answer.n_steered, answer.opening, answer.refusal) == (1, "", None)
    assert answer.n_interventions == 1
    # One step chose three tokens: the first was not the likeliest, and none was an opening.
    first = next(step for step in script.steps if step.text == "Sorry")
    assert not first.accepted and not first.opening
    behind = script.steps[script.steps.index(first) + 1 :]
    assert all(step.accepted and not step.opening for step in behind)
    assert [candidate.text for candidate in first.candidates] == [
        " bad bad bad",
        " tale tale tale",
        "Sorry no no",
    ]
    assert first.candidates[0].score == pytest.approx(0.9)
    assert first.candidates[2].score == pytest.approx(0.01)


@pytest.mark.parametrize("change", [{"look_ahead": 0}, {"look_ahead_limit": 0.009}])
def test_where_it_does_not_look_ahead_or_finds_nothing_safe_an_opening_joins(
    change: dict[str, float],
):
    script = shallow_model()
    script.policy = replace(_STEERING, **change)
    answer = script.decode()
    assert answer.text.startswith(_OPENING) and answer.opening == _OPENING


def test_a_model_that_never_refuses_is_led_by_an_opening():
    answer = shallow_model(refuses=False).decode()
    assert answer.opening == _OPENING


def test_a_beginning_that_is_a_whole_answer_ends_it():
    script = shallow_model()
    chances = script.engine.next_tokens
    script.engine.next_tokens = lambda prefix: (
        {END: 1.0} if prefix == (_SORRY, _CANNOT) else chances(prefix)
    )
    script.probe = PlainProbe(lambda _, token_id: 0.0 if token_id == END else _SCORES[token_id])
    answer = script.decode()
    assert (answer.text, answer.finish_reason) == ("Sorry no", "stop")


def test_without_openings_what_lies_ahead_is_all_that_re_ranking_has():
    script = replace(shallow_model(), openings=())
    assert script.decode().text == "Sorry no no no no"


def test_it_looks_ahead_where_nothing_has_been_said_and_once():
    script = shallow_model(refuses=False)
    script.openings, script.policy = (), replace(_STEERING, strength=1e-6)
    answer = script.decode()
    assert answer.n_steered == 2 and answer.text.endswith(REFUSAL_TEXT)
    assert sum(call.name == "look_ahead" for call in script.engine.calls) == 1
    shown = shallow_model()
    shown.engine.next_tokens = lambda prefix: {_CANNOT if len(prefix) < 3 else _HARM: 1.0}
    shown.decode()
    assert any(isinstance(event, Steered) for event in shown.events)
    assert not any(call.name == "look_ahead" for call in shown.engine.calls)


def test_a_context_without_room_is_not_looked_ahead_in():
    script = shallow_model()
    script.n_spare = 4
    script.engine.n_ctx = 4 + N_LOOKED_AHEAD * _STEERING.look_ahead - 1
    list(script.start().events())
    assert not any(call.name == "look_ahead" for call in script.engine.calls)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1])
def test_a_beginning_without_a_score_ends_in_the_refusal(score: float):
    script = shallow_model()
    script.probe = PlainProbe(
        lambda _position, token_id: score if token_id == _STORY else _SCORES.get(token_id, 0.2)
    )
    answer = script.decode()
    assert answer.refusal is not None and answer.refusal.reason == "guard_failed"
    assert isinstance(script.events[-1], Refused) and answer.text == REFUSAL_TEXT


@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 0.99)), min_size=2, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_is_distributed_as_chances_times_the_odds_of_safety(
    candidates: list[tuple[float, float]],
):
    probs = np.array([prob for prob, _ in candidates])
    probs /= probs.sum()
    scores = {10 + at: score for at, (_, score) in enumerate(candidates)}
    ids = np.array([*scores], dtype=np.int32)
    blocks = tuple((token_id, token_id) for token_id in scores)
    proposal = Proposal(ids, np.log(probs), drawn=0, greedy=False, ahead=blocks)
    states = [np.array([[0, t], [1, t]], dtype=np.float32) for t in scores]
    law = exact_law(
        lambda rng: choose_by_odds(by_token(scores), proposal, states, rng).index, len(probs)
    )
    odds = np.array([(1 - score) / score for score in scores.values()])
    expected = probs * odds / (probs * odds).sum()
    np.testing.assert_allclose(law, expected, atol=256 * EDGE_ERROR + 1e-5)
    greedy = choose_by_odds(
        by_token(scores), replace(proposal, greedy=True), states, np.random.default_rng(0)
    )
    assert expected[greedy.index] == pytest.approx(expected.max(), rel=1e-4)
