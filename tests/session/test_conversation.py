"""Turn after turn: what is kept, what is evaluated again, and what a seed decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Step
from tests.guarded_tiny import (
    DRAWN,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    REFUSAL_TEXT,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened, texts

# Some answers of the wavering probe cross this limit, and some do not.
IMPATIENT_POLICY = replace(POLICY, risk_limit=0.45, risk_min_steps=6, conversation_carry=0.5)
PROMPTS = ("Hello there", "What is it?", "Name one.", "Why?", "Count to ten.", "Say it again.")


def test_the_conversation_grows_by_the_question_and_the_answer(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        first = ask(session, "Hello there")
        second = ask(session, "And then?")
        messages = session.conversation.messages
    assert [message.role for message in messages] == ["user", "assistant"] * 2
    said = [message.text for message in messages]
    assert said == ["Hello there", first.text, "And then?", second.text]
    assert messages[1].token_ids == tuple(step.token_id for step in first.steps)


def test_a_second_turn_reuses_all_of_the_first(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        first = ask(session, "Hello there").ended.usage
        second = ask(session, "And then?").ended.usage
    assert first.reused_tokens == 0
    assert second.reused_tokens == first.prompt_tokens + first.completion_tokens
    assert second.prompt_tokens > second.reused_tokens


def test_a_steered_turn_is_reused_as_well(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        first = ask(session, "Hello there").ended
        assert first.guard.interventions
        second = ask(session, "And then?").ended.usage
    assert second.reused_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def test_an_answer_out_of_the_cache_is_that_of_a_fresh_session(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with (
        opened(guarded_tiny, bundle, max_tokens=6) as session,
        opened(guarded_tiny, bundle, max_tokens=6) as fresh,
    ):
        ask(session, "Hello there")
        fresh.restore(session.messages)
        again = ask(fresh, "And then?")
        assert again.prefill.n_reused_tokens == 0
        assert again.text == ask(session, "And then?").text


def test_a_new_conversation_forgets_the_old_one(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        first = ask(session, "Hello there")
        ask(session, "And then?")
        session.reset()
        assert len(session.conversation) == 0
        again = ask(session, "Hello there")
    assert again.text == first.text
    assert again.scores == first.scores
    assert again.steps[0].risk == first.steps[0].risk


def test_a_system_prompt_begins_a_conversation_and_comes_nowhere_else(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        plain = ask(session, "Hello there")
        with pytest.raises(InputError, match="can only begin a conversation"):
            next(session.ask("And then?", system="Be brief."))
        session.reset()
        with_system = ask(session, "Hello there", system="Be brief.")
        roles = [message.role for message in session.conversation]
        ask(session, "And then?")
    assert roles == ["system", "user", "assistant"]
    assert with_system.prefill.n_prompt_tokens > plain.prefill.n_prompt_tokens


def test_the_same_seed_gives_the_same_answer(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    by_seed = {
        seed: texts(guarded_tiny, bundle, PROMPTS[:3], sampling=replace(DRAWN, seed=seed))
        for seed in (1, 2)
    }
    again = texts(guarded_tiny, bundle, PROMPTS[:3], sampling=replace(DRAWN, seed=1))
    assert again == by_seed[1] != by_seed[2]


def test_lazy_and_eager_give_the_same_answer_from_one_seed(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    lazy, eager = (
        texts(guarded_tiny, bundle, PROMPTS[:3], sampling=DRAWN, rerank=rerank)
        for rerank in ("lazy", "eager")
    )
    assert lazy == eager


def test_a_turn_after_a_refusal_is_answered(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, IMPATIENT_POLICY)
    with opened(guarded_tiny, bundle, guard="refuse") as session:
        turns = [ask(session, prompt) for prompt in PROMPTS]
        messages = session.conversation.messages
    reasons = [turn.ended.finish_reason for turn in turns]
    assert "refused" in reasons[:-1]
    assert "length" in reasons[reasons.index("refused") :]
    for turn, message in zip(turns, messages[1::2], strict=True):
        assert message.text == turn.text
        refused = turn.ended.finish_reason == "refused"
        assert turn.text.endswith(REFUSAL_TEXT) == refused


def test_what_a_refusal_took_back_is_not_in_the_next_prompt(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, IMPATIENT_POLICY)
    with opened(guarded_tiny, bundle, guard="refuse") as session:
        turn = next(
            turn
            for turn in (ask(session, prompt) for prompt in PROMPTS)
            if turn.ended.refusal is not None
        )
        taken_back = "".join(step.text for step in turn.steps)[-8:]
        token_ids = session.prompt_token_ids("And then?")
        pieces = [session._runtime.model.piece(token_id) for token_id in token_ids]
        n_reused = ask(session, "And then?").prefill.n_reused_tokens
    prompt = b"".join(pieces).decode()
    assert turn.text in prompt
    assert taken_back not in prompt
    assert n_reused >= turn.ended.usage.prompt_tokens


def test_risk_is_carried_into_the_next_turn(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, replace(PATIENT_POLICY, conversation_carry=0.5))
    with opened(guarded_tiny, bundle) as session:
        first = ask(session, "Hello there")
        second = ask(session, "And then?")
    carried = 0.5 * (first.ended.guard.risk or 0)
    assert carried > 0.1
    assert second.steps[0].risk == pytest.approx((carried + second.scores[0]) / 2)


def test_closing_the_events_early_drops_the_turn_and_nothing_else(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        expected = ask(session, "Hello there").text
        session.reset()
        for n_events in (1, 2, 5):
            events = session.ask("Something else")
            for _ in range(n_events):
                next(events)
            events.close()
            assert len(session.conversation) == 0
        assert ask(session, "Hello there").text == expected


def test_events_that_nobody_finished_do_not_disturb_the_next_question(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        expected = ask(session, "Hello there").text
        session.reset()
        left_open = session.ask("Something else")
        for event in left_open:
            if isinstance(event, Step) and event.step == 3:
                break
        assert ask(session, "Hello there").text == expected


def test_what_the_next_question_would_evaluate_can_be_read(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        token_ids = session.prompt_token_ids("Hello there")
        assert len(token_ids) == ask(session, "Hello there").prefill.n_prompt_tokens
        assert len(session.conversation) == 2  # reading did not ask
