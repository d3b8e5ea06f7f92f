"""Stopping an answer, from another thread, within one token."""

from __future__ import annotations

import threading

import pytest

from safesteer_edge.guard.events import PrefillDone, Step, TurnEnded
from tests.guarded_tiny import ALARMED, QUIET, GuardedTiny
from tests.session.turns import ask, opened


def in_another_thread(call) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("is_guarded", [True, False])
def test_an_answer_stops_at_the_token_that_is_being_decoded(
    guarded_tiny: GuardedTiny, is_guarded: bool
):
    bundle = guarded_tiny.bundle(QUIET) if is_guarded else None
    with opened(guarded_tiny, bundle, max_tokens=200) as session:
        whole = ask(session, "Hello there").text
        session.reset()
        events = []
        for event in session.ask("Hello there"):
            events.append(event)
            if isinstance(event, Step) and event.step == 20:
                in_another_thread(session.cancel)
        ended = events[-1]
        n_steps = sum(isinstance(event, Step) for event in events)
        assert isinstance(ended, TurnEnded)
        assert (ended.finish_reason, n_steps) == ("cancelled", 20)
        assert ended.text
        assert whole.startswith(ended.text)
        assert session.conversation.messages[-1].text == ended.text


def test_the_conversation_goes_on_after_a_cancelled_answer(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), max_tokens=30) as session:
        for event in session.ask("Hello there"):
            if isinstance(event, Step) and event.step == 10:
                session.cancel()
        turn = ask(session, "And then?")
        assert turn.ended.finish_reason == "length"
        assert turn.prefill.n_reused_tokens > 0
        roles = [message.role for message in session.conversation]
    assert roles == ["user", "assistant"] * 2


def test_cancelling_before_the_first_token_says_nothing(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        events = session.ask("Hello there")
        assert isinstance(next(events), PrefillDone)
        session.cancel()
        (ended,) = events
        assert isinstance(ended, TurnEnded)
        assert (ended.text, ended.finish_reason) == ("", "cancelled")
        assert ask(session, "And then?").text


def test_cancelling_before_the_first_event_is_not_forgotten(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        events = session.ask("Hello there")
        session.cancel()
        *_, ended = events
        assert isinstance(ended, TurnEnded)
        assert ended.finish_reason == "cancelled"


def test_cancelling_while_a_long_prompt_is_read_ends_the_turn(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=2048) as session:
        events = session.ask("word " * 300)  # more tokens than one batch of 512
        session.cancel()
        (ended,) = events
        assert isinstance(ended, TurnEnded)
        assert (ended.text, ended.finish_reason) == ("", "cancelled")
        assert (ended.usage.completion_tokens, ended.guard.refused) == (0, False)
        assert ended.guard.bundle == session.info.bundle
        assert len(session.conversation) == 0
        assert ask(session, "Hello there").text


def test_a_cancel_between_two_turns_does_not_stop_the_next(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        session.cancel()
        assert ask(session, "Hello there").ended.finish_reason == "length"


def test_what_the_guard_was_still_weighing_stays_unsaid(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        events = []
        for event in session.ask("Hello there"):
            events.append(event)
            if isinstance(event, Step) and event.step == 2:
                session.cancel()
    assert isinstance(events[-1], TurnEnded)
    assert (events[-1].text, events[-1].finish_reason) == ("", "cancelled")
