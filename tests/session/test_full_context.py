"""A chat that outgrows its context goes on: whole old turns are left out, and that is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import PromptTooLongError
from safesteer_edge.guard.events import Event, TurnEnded, TurnsLeftOut
from safesteer_edge.session.isolated_session import open_isolated_session
from safesteer_edge.session.prompt import n_old_turns, without_oldest_turns
from safesteer_edge.session.protocol import ChatMessage
from safesteer_edge.session.session import Session
from safesteer_edge.templates.conversation import Conversation, MediaContent, Message, TextContent
from tests.guarded_tiny import POLICY, QUIET, WAVERING, GuardedTiny
from tests.session.turns import Turn, ask, opened

N_CTX = 256
STEADY_POLICY = replace(POLICY, risk_limit=1.0, risk_min_steps=1024, hard_patience=1024)


def question(number: int) -> str:
    return f"Question number {number}: what is it, and why?"


def asked_until_full(session: Session, **first: object) -> list[Turn]:
    """Turns up to the first whose prompt leaves some out."""
    turns = [ask(session, question(0), **first)]
    while turns[-1].left_out is None:
        turns.append(ask(session, question(len(turns))))
        assert len(turns) < 50
    return turns


def prompt(session: Session) -> str:
    """The words of the prompt that the next question would have."""
    pieces = map(session._runtime.model.piece, session.prompt_token_ids("Next?"))
    return b"".join(pieces).decode("utf-8", "replace")


def test_the_oldest_turns_are_left_out_and_told(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=N_CTX) as session:
        *before, full = asked_until_full(session, system="Be brief.")
        assert len(before) > 2
        assert full.left_out is not None
        n_out = full.left_out.n_turns
        assert full.left_out == TurnsLeftOut(n_out, n_out)
        assert 0 < n_out < len(before)
        assert full.ended.usage.prompt_tokens <= N_CTX // 2
        words = prompt(session)
        assert "Be brief." in words
        assert question(n_out - 1) not in words
        assert question(n_out) in words
        assert len(session.messages) == 1 + 2 * (len(before) + 1)  # all of it is still there
        # The next prompt begins as this one did.
        more = ask(session, "And then?")
        assert more.left_out == TurnsLeftOut(n_out, 0)
        usage = full.ended.usage
        assert more.ended.usage.reused_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_chat_may_go_on_for_ever(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=N_CTX) as session:
        told = [ask(session, question(number)).left_out for number in range(40)]
    n_out = [each.n_turns if each else 0 for each in told]
    assert n_out == sorted(n_out)
    assert n_out[-1] > 30
    assert sum(each.n_new for each in told if each) == n_out[-1]


def test_each_answer_is_that_of_a_session_that_was_told_what_is_left(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, STEADY_POLICY)
    with (
        opened(guarded_tiny, bundle, n_ctx=N_CTX) as session,
        opened(guarded_tiny, bundle, n_ctx=N_CTX) as fresh,
    ):
        *_, full = asked_until_full(session)
        assert full.left_out is not None
        fresh.restore(session.messages[2 * full.left_out.n_turns : -2])
        again = ask(fresh, session.messages[-2].text)
        assert (again.left_out, again.text) == (None, full.text)


def test_what_is_left_out_counts_towards_the_risk(guarded_tiny: GuardedTiny):
    """The last answer carries what the conversation came to, whatever the prompt holds of it."""
    bundle = guarded_tiny.bundle(WAVERING, STEADY_POLICY)
    with opened(guarded_tiny, bundle, n_ctx=N_CTX) as session:
        *_, full = asked_until_full(session)
        before = session._history.without_last().without_last()
        policy = session.policy
        assert policy is not None
        assert before.carried_risk(policy) > 0
        n_out = full.left_out.n_turns if full.left_out else 0
        messages = list(session.messages[:-2])
        # An answer whose risk nobody knows is the last before all that is left out, or not.
        messages[-1] = replace(messages[-1], risk=None)
        session.restore(messages)
        assert session._history.carried_risk(policy) == policy.conversation_carry * 1.0
        unknown = ask(session, question(99))
        assert unknown.left_out is not None
        assert unknown.left_out.n_turns >= n_out
        first_risks = [turn.steps[0].risk or 0.0 for turn in (full, unknown)]
        assert first_risks[1] > first_risks[0]


def test_the_picture_that_questions_may_be_about_stays(guarded_tiny: GuardedTiny, picture: Path):
    bundle = guarded_tiny.bundle(QUIET, has_vector=True)
    changes = {"mmproj": guarded_tiny.projector, "n_ctx": N_CTX}
    with opened(guarded_tiny, bundle, **changes) as session:
        full = asked_until_full(session, images=[picture])[-1]
        assert full.ended.usage.media_tokens == 4
        assert full.prefill.vector_active
        words = prompt(session)
        assert question(0) in words
        assert question(1) not in words


def test_a_context_that_a_picture_fills_lets_go_of_it(guarded_tiny: GuardedTiny, picture: Path):
    long = "word " * 34
    changes = {"mmproj": guarded_tiny.projector, "n_ctx": N_CTX}
    with opened(guarded_tiny, None, **changes) as session:
        ask(session, long, images=[picture])
        last = ask(session, long)
    assert last.left_out == TurnsLeftOut(1, 1)
    assert last.ended.usage.media_tokens == 0


def test_a_question_that_is_too_long_by_itself_is_refused(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=N_CTX) as session:
        ask(session, "Hello")
        before = session.messages
        for refuse in (session.check_fits, lambda text: ask(session, text)):
            with pytest.raises(PromptTooLongError, match="shorten it"):
                refuse("word " * N_CTX)
        assert session.messages == before


def test_a_session_that_is_to_stop_stops_and_says_what_to_do(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, n_ctx=N_CTX, when_full="stop") as session:
        with pytest.raises(PromptTooLongError, match="type /compact to summarize it, or /new"):
            for number in range(50):
                assert ask(session, question(number)).left_out is None
        with pytest.raises(PromptTooLongError, match="/compact"):
            session.check_fits(question(50))
        session.change(replace(session.turn_settings, when_full="drop"))
        session.check_fits(question(50))
        assert ask(session, question(50)).left_out is not None


def test_an_answer_that_met_the_end_of_the_context_goes_on(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=N_CTX) as session:
        for number in range(3):
            ask(session, question(number))
        session.change(replace(session.turn_settings, max_tokens=1000))
        cut = ask(session, "Say more.")
        assert cut.ended.finish_reason == "length"
        assert cut.ended.usage.completion_tokens < 1000
        events: list[Event] = list(session.continue_answer())
        more = events[-1]
        assert isinstance(more, TurnEnded)
        assert any(isinstance(event, TurnsLeftOut) for event in events)
        assert more.usage.completion_tokens > 0
        assert more.text.startswith(cut.text)


def test_a_process_of_its_own_tells_it_as_well(guarded_tiny: GuardedTiny):
    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET), n_ctx=N_CTX)
    with open_isolated_session(settings) as session:
        events: list[Event] = []
        for number in range(12):
            events += session.ask(question(number))
        assert any(isinstance(event, TurnsLeftOut) for event in events)
        assert len(session.messages) == 24


def test_a_chat_from_a_file_that_never_fitted_goes_on(guarded_tiny: GuardedTiny):
    stored = [
        ChatMessage("user", question(number)) if half == 0 else ChatMessage("assistant", "Yes.")
        for number in range(60)
        for half in (0, 1)
    ]
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=N_CTX) as session:
        session.restore(stored)
        turn = ask(session, "And now?")
        assert turn.left_out is not None
        assert turn.left_out.n_new == turn.left_out.n_turns > 50
        session.restore(session.messages[:-2])  # as regenerating does
        again = ask(session, "And now?")
        assert again.left_out == replace(turn.left_out, n_new=0)
        assert again.text == turn.text
        session.restore(stored[:2])
        assert ask(session, "And now?").left_out is None


_turns = st.lists(st.booleans(), max_size=6)  # whether each has a picture


@given(_turns, st.booleans(), st.booleans(), st.integers(0, 8))
def test_whole_turns_go_the_oldest_first_and_the_latest_picture_last(
    pictured: list[bool], has_system: bool, asks_of_picture: bool, n_turns: int
):
    image = MediaContent("image", "1" * 64)
    said: list[Message] = [Message.from_text("system", "S")] if has_system else []
    for number, has_picture in enumerate([*pictured, asks_of_picture]):
        media = (image,) if has_picture else ()
        said.append(Message("user", (*media, TextContent(f"q{number}"))))
        said.append(Message.from_text("assistant", f"a{number}"))
    conversation = Conversation(tuple(said[:-1]))
    n_old = n_old_turns(conversation)
    assert n_old == len(pictured)
    kept = without_oldest_turns(conversation, n_turns).messages
    texts = [message.text for message in kept]
    assert texts == [m.text for m in conversation if m.text in texts]  # in order
    assert kept[-1] == conversation.messages[-1]
    assert (kept[0].role == "system") == has_system
    assert len(kept) == len(conversation) - 2 * min(n_turns, n_old)
    for number in range(n_old):
        assert (f"q{number}" in texts) == (f"a{number}" in texts)
    has_one = any(pictured) and not asks_of_picture
    if has_one and n_turns < n_old:
        latest = max(number for number, each in enumerate(pictured) if each)
        assert f"q{latest}" in texts
