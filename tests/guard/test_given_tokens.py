"""An answer that begins with given tokens: they are judged like the model's own, never steered."""

from __future__ import annotations

import pytest

from safesteer_edge.guard.events import Refused, Step
from safesteer_edge.guard.policy import GuardMode
from tests.guard.plain_probes import BrokenProbe, PlainProbe, by_token
from tests.guard.scripted_answers import (
    END,
    REFUSAL_TEXT,
    ScriptedAnswer,
    policy_with,
)
from tests.guard.scripted_engine import Prefix, ScriptedEngine

PIECES = {1: b"Sure", 2: b", here", 3: b" is", 4: b" bread", 5: b" no"}


def begun(*given: int, scores: dict[int, float] | None = None, n_ctx: int = 100) -> ScriptedAnswer:
    """An answer that begins with `given` and goes on with ' bread', or ' no', and ends."""

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        return {END: 1.0} if len(prefix) > len(given) else {4: 0.9, 5: 0.1}

    engine = ScriptedEngine(next_tokens, PIECES, end_ids={END}, n_ctx=n_ctx)
    return ScriptedAnswer(engine, by_token(scores or {}), given=given)


def test_the_answer_begins_with_the_given_tokens():
    script = begun(1, 2, 3)
    answer = script.decode()
    assert answer.text == "Sure, here is bread"
    assert answer.token_ids == (1, 2, 3, 4)
    assert [step.given for step in script.steps] == [True, True, True, False, False]
    assert [step.logprob for step in script.steps[:3]] == [0.0, 0.0, 0.0]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("mode", ["steer", "refuse", "monitor"])
def test_given_tokens_are_scored_and_count_towards_the_risk(mode: GuardMode):
    script = begun(1, 2, scores={1: 0.4, 2: 0.2})
    script.mode = mode
    answer = script.decode()
    assert answer.scores[:2] == pytest.approx((0.4, 0.2))
    assert script.steps[1].risk == pytest.approx(0.3)


def test_given_tokens_are_kept_where_the_guard_would_have_steered():
    script = begun(1, 2, scores={1: 0.9, 4: 0.9})
    script.policy = policy_with(risk_limit=1.0, hard_patience=9)
    answer = script.decode()
    assert answer.token_ids == (1, 2, 5)  # its own token it did steer
    assert answer.n_interventions == 1


def test_a_refusal_may_come_before_the_model_has_said_a_word():
    script = begun(1, 2, 3, scores={1: 0.9, 2: 0.9, 3: 0.9})
    script.policy = policy_with(risk_limit=0.5, risk_min_steps=2)
    answer = script.decode()
    assert answer.text == REFUSAL_TEXT
    assert [type(event) for event in script.events] == [Step, Step, Refused]
    assert answer.refusal is not None and answer.refusal.n_tokens_taken_back == 2
    assert not any(call.name == "propose" for call in script.engine.calls)


def test_a_prefix_that_cannot_be_judged_is_refused():
    script = begun(1, 2)
    script.probe = BrokenProbe(
        PlainProbe(lambda _position, _token: 0.0), fails_at=1, fail=lambda hidden: hidden[:, 0] + 9
    )
    answer = script.decode()
    assert answer.text.endswith(REFUSAL_TEXT)
    assert answer.refusal is not None and answer.refusal.reason == "guard_failed"


def test_given_tokens_do_not_count_against_the_limit():
    script = begun(1, 2, 3)
    script.max_tokens = 1
    answer = script.decode()
    assert answer.text == "Sure, here is bread"
    assert answer.finish_reason == "length"


def test_without_a_guard_they_are_fed_as_they_are():
    script = begun(1, 2)
    script.policy = None
    assert script.decode().text == "Sure, here bread"
    assert [call.name for call in script.engine.calls[:4]] == ["evaluate", "accept"] * 2


def test_cancelling_stops_between_given_tokens():
    script = begun(1, 2, 3)
    script.cancelled = lambda: len(script.engine.sequence) >= 2
    assert script.decode().finish_reason == "cancelled"
    assert script.engine.sequence == [1, 2]
