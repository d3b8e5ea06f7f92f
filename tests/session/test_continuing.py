"""Going on with an answer: as if it had never been cut, and never around the guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event, Refused, Step, TextDelta, TurnEnded
from safesteer_edge.session.protocol import ChatMessage, TurnSettings
from safesteer_edge.session.session import Session
from tests.guarded_tiny import (
    ALARMED,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    REFUSAL_TEXT,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened


def go_on(session: Session) -> tuple[list[Event], TurnEnded]:
    *events, ended = session.continue_answer()
    assert isinstance(ended, TurnEnded)
    return events, ended


def forget_scores(session: Session) -> None:
    """Bring the session to its own conversation, as after resuming it from a file."""
    stored = session.messages
    session.reset()
    session.restore(stored)


@pytest.mark.parametrize("interlude", [None, forget_scores], ids=["at once", "restored"])
@pytest.mark.parametrize("bias", [QUIET, WAVERING, None])
def test_a_continued_answer_is_the_answer_that_was_not_cut(
    guarded_tiny: GuardedTiny, bias: float | None, interlude: Callable[[Session], None] | None
):
    # Few tokens: the tiny model's bytes are no UTF-8, and restored text is tokenised anew.
    policy = replace(PATIENT_POLICY, prompt_weight=8)
    bundle = guarded_tiny.bundle(bias, policy) if bias is not None else None
    with opened(guarded_tiny, bundle, max_tokens=24) as session:
        whole = ask(session, "Hello there")
        session.reset()
        session.change(replace(session.turn_settings, max_tokens=12))
        first = ask(session, "Hello there")
        if interlude is not None and "\ufffd" in first.text:
            pytest.skip("the text is not what the tokens said")
        if interlude is not None:
            interlude(session)
        events, ended = go_on(session)
        answers = [message.text for message in session.messages if message.role == "assistant"]
    assert ended.text == whole.text
    assert answers == [whole.text]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.token_id for step in steps] == [step.token_id for step in whole.steps[12:]]
    if bias is not None:
        assert [step.risk for step in steps] == pytest.approx(
            [step.risk for step in whole.steps[12:]], abs=1e-3
        )
        assert ended.guard.max_score == pytest.approx(whole.ended.guard.max_score, abs=1e-3)
    new = "".join(event.text for event in events if isinstance(event, TextDelta | Refused))
    assert first.text + new == ended.text


def test_an_answer_that_was_stopped_goes_on(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), max_tokens=24) as session:
        whole = ask(session, "Hello there").text
        session.reset()
        for event in session.ask("Hello there"):
            if isinstance(event, Step) and event.step == 10:
                session.cancel()
        _, ended = go_on(session)
    assert ended.text.startswith(whole)


def test_a_beginning_that_the_guard_never_saw_is_scored_before_anything_is_added(
    guarded_tiny: GuardedTiny,
):
    """As when somebody writes the beginning of a harmful answer into a stored chat."""
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        session.restore([ChatMessage("user", "Hello"), ChatMessage("assistant", "Sure: step one")])
        events, ended = go_on(session)
    assert not any(isinstance(event, Step) for event in events)
    assert ended.finish_reason == "refused"
    assert ended.text == "Sure: step one\n\n" + REFUSAL_TEXT
    assert ended.usage.completion_tokens == 0


def test_an_answer_given_with_the_guard_off_is_scored_once_it_is_on(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED), max_tokens=8) as session:
        guarded = session.turn_settings
        session.change(replace(guarded, guard="off"))
        assert ask(session, "Hello there").ended.finish_reason == "length"
        session.change(guarded)
        _, ended = go_on(session)
    assert ended.refusal is not None


def test_stopping_while_the_beginning_is_scored_keeps_the_answer(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        session.restore([ChatMessage("user", "Hello"), ChatMessage("assistant", "Well, it is")])
        events = session.continue_answer()
        next(events)
        session.cancel()
        *_, ended = events
        assert isinstance(ended, TurnEnded)
        assert (ended.text, ended.finish_reason) == ("Well, it is", "cancelled")
        assert session.messages[-1].text == "Well, it is"
        assert ask(session, "And then?").text


def test_a_refused_answer_is_not_continued(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED, POLICY)) as session:
        ask(session, "Hello there")
        with pytest.raises(InputError, match="was refused"):
            next(session.continue_answer())


def test_there_must_be_an_answer(guarded_tiny: GuardedTiny):
    with (
        opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session,
        pytest.raises(InputError, match="no answer to continue"),
    ):
        next(session.continue_answer())


def test_closing_the_events_early_keeps_the_answer_as_it_was(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), max_tokens=8) as session:
        first = ask(session, "Hello there")
        events = session.continue_answer()
        for event in events:
            if isinstance(event, Step) and event.step == 3:
                break
        events.close()
        assert session.messages[-1].text == first.text
        whole = session.turn_settings
        session.change(TurnSettings(sampling=whole.sampling, max_tokens=8))
        _, ended = go_on(session)
    assert ended.text.startswith(first.text)
    assert len(ended.text) > len(first.text)
