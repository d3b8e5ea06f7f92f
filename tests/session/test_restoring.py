"""Bringing a session to a stored conversation, for resuming, editing, forking, regenerating."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.errors import InputError, MediaError
from safesteer_edge.session.protocol import ChatMessage
from tests.guard.scripted_answers import NO_SCORES
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

CARRYING = replace(PATIENT_POLICY, conversation_carry=0.5)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (56, 56), "navy").save(path)
    return path


def test_messages_are_what_was_said_with_its_files(guarded_tiny: GuardedTiny, picture: Path):
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        turn = ask(session, "What is this?", images=[picture], system="Be brief.")
        messages = session.messages
    assert messages == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "What is this?", images=(picture,)),
        ChatMessage("assistant", turn.text, risk=turn.ended.guard.risk),
    )


def test_a_restored_conversation_goes_on_as_it_would_have(guarded_tiny: GuardedTiny, picture: Path):
    bundle = guarded_tiny.bundle(WAVERING, CARRYING)
    changes = {"mmproj": guarded_tiny.projector, "max_tokens": 6}
    with (
        opened(guarded_tiny, bundle, **changes) as session,
        opened(guarded_tiny, bundle, **changes) as other,
    ):
        ask(session, "What is this?", images=[picture])
        other.restore(session.messages)
        one, two = ask(session, "And then?"), ask(other, "And then?")
    assert one.text == two.text
    assert one.scores == pytest.approx(two.scores, abs=1e-3)  # batch shapes round differently
    assert one.steps[0].risk == pytest.approx(two.steps[0].risk, abs=1e-3)


@pytest.mark.parametrize("risk", NO_SCORES)
def test_a_risk_that_is_none_is_refused_and_the_guard_goes_on(
    guarded_tiny: GuardedTiny, risk: float
):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        ask(session, "Hello there")
        before = session.messages
        with pytest.raises(InputError, match=r"risk of the assistant message is"):
            session.restore(
                [ChatMessage("user", "Hello"), ChatMessage("assistant", "Hi", risk=risk)]
            )
        assert session.messages == before
        assert ask(session, "And then?").text == REFUSAL_TEXT


@pytest.mark.parametrize("guard", ["steer", "refuse", "monitor"])
@pytest.mark.parametrize("bias", [QUIET, ALARMED])
@pytest.mark.parametrize("risk", NO_SCORES)
def test_no_turn_is_answered_on_a_risk_that_is_none(
    guarded_tiny: GuardedTiny, guard: str, bias: float, risk: float
):
    """Even where one got past every door: then the guard cannot judge, and says so."""
    message = ChatMessage("assistant", "Hi")
    object.__setattr__(message, "risk", risk)
    bundle = guarded_tiny.bundle(bias, replace(POLICY, conversation_carry=1.0))
    with opened(guarded_tiny, bundle, guard=guard) as session:
        session.restore([ChatMessage("user", "Hello"), message])
        turn = ask(session, "And then?")
        assert (turn.text, turn.ended.finish_reason) == (REFUSAL_TEXT, "refused")
        assert turn.ended.refusal is not None and turn.ended.refusal.reason == "guard_failed"
        # It is not written on: what cannot be judged is unknown, as after a death.
        assert turn.ended.guard.risk is None
        following = ask(session, "And then?")
        assert (following.text == REFUSAL_TEXT) == (bias == ALARMED and guard != "monitor")


def test_asking_again_gives_the_same_answer_from_the_cache(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, CARRYING)) as session:
        ask(session, "Hello there")
        before = session.messages
        first = ask(session, "And then?")
        session.restore(before)
        again = ask(session, "And then?")
    assert again.text == first.text
    assert again.steps[0].risk == first.steps[0].risk
    # All but the question, whose states are read anew.
    assert again.prefill.n_reused_tokens >= first.prefill.n_reused_tokens > 0


def test_an_edited_question_keeps_what_comes_before_it(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        first = ask(session, "Hello there")
        ask(session, "And then?")
        session.restore(session.messages[:2])
        edited = ask(session, "What is it?")
        assert [m.text for m in session.messages[::2]] == ["Hello there", "What is it?"]
    assert edited.prefill.n_reused_tokens >= first.ended.usage.completion_tokens


@pytest.mark.parametrize("risk", [0.1, 0.6, None])
def test_risk_is_restored_and_high_where_it_is_unknown(
    guarded_tiny: GuardedTiny, risk: float | None
):
    policy = replace(CARRYING, risk_limit=0.8)
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, policy)) as session:
        session.restore([ChatMessage("user", "Hello"), ChatMessage("assistant", "Hi", risk=risk)])
        turn = ask(session, "And then?")
    carried = 0.5 * (0.8 if risk is None else risk)
    assert turn.steps[0].risk == pytest.approx((carried + turn.scores[0]) / 2)


@pytest.mark.parametrize(
    "roles", [("user",), ("assistant",), ("user", "user"), ("user", "assistant", "system")]
)
def test_an_order_that_no_conversation_has_is_refused(
    guarded_tiny: GuardedTiny, roles: tuple[str, ...]
):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        ask(session, "Hello there")
        before = session.messages
        with pytest.raises(InputError, match="cannot restore"):
            session.restore([ChatMessage(role, "Hello") for role in roles])  # pyright: ignore[reportArgumentType]  # one of the roles
        assert session.messages == before


def test_a_file_that_is_gone_leaves_the_conversation_as_it_was(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    bundle = guarded_tiny.bundle(QUIET)
    with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
        ask(session, "Hello there")
        before = session.messages
        gone = ChatMessage("user", "What is this?", images=(tmp_path / "gone.png",))
        with pytest.raises(MediaError, match=r"gone\.png"):
            session.restore([gone, ChatMessage("assistant", "A dog.")])
        assert session.messages == before
        assert ask(session, "And then?").prefill.n_reused_tokens > 0
