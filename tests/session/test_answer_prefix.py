"""Answers that begin with the caller's words, on the real engine."""

from __future__ import annotations

import pytest

from safesteer_edge.errors import PromptTooLongError
from tests.guarded_tiny import ALARMED, PATIENT_POLICY, QUIET, REFUSAL_TEXT, GuardedTiny
from tests.session.turns import Turn, ask, opened

OPENING = "Sure, here is"


def test_the_answer_begins_with_the_prefix_and_goes_on(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        turn = ask(session, "Hello there", answer_prefix=OPENING)
        last = session.conversation.messages[-1]
    assert turn.text.startswith(OPENING)
    n_given = sum(step.given for step in turn.steps)
    assert 0 < n_given < len(turn.steps)
    assert len(turn.steps) <= n_given + 12  # its own tokens are what max_tokens counts
    assert last.text == turn.text
    assert turn.ended.usage.forward_passes >= len(turn.steps)


def test_a_quiet_guard_changes_nothing(guarded_tiny: GuardedTiny):
    answers: list[str] = []
    for bundle in (None, guarded_tiny.bundle(QUIET)):
        with opened(guarded_tiny, bundle) as session:
            answers.append(ask(session, "Hello there", answer_prefix=OPENING).text)
    assert answers[0] == answers[1]


def test_giving_the_models_own_words_leads_to_the_same_answer(guarded_tiny: GuardedTiny):
    def ids(turn: Turn, n: int) -> list[int]:
        return [step.token_id for step in turn.steps[:n]]

    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        whole = ask(session, "Hello there")
        for n_given in range(2, 8):  # not every text gives back the tokens that made it
            session.reset()
            given = "".join(step.text for step in whole.steps[:n_given])
            again = ask(session, "Hello there", answer_prefix=given)
            if ids(again, n_given) == ids(whole, n_given) and again.steps[n_given - 1].given:
                break
        else:
            pytest.fail("no beginning of the answer is tokenised as it was written")
    n_same = min(len(whole.steps), len(again.steps))
    assert n_same > n_given
    assert again.steps[n_given:n_same] == whole.steps[n_given:n_same]


def test_an_alarmed_guard_refuses_within_the_prefix(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        turn = ask(session, "Hello there", answer_prefix=OPENING)
        after = ask(session, "And now?")
    assert turn.text == REFUSAL_TEXT
    assert all(step.given for step in turn.steps)
    assert after.ended.usage.prompt_tokens > turn.ended.usage.prompt_tokens


def test_a_prefix_that_leaves_no_room_is_an_error(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(QUIET, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, n_ctx=128) as session:
        with pytest.raises(PromptTooLongError, match="begin with"):
            list(session.ask("Hello there", answer_prefix="word " * 300))
        assert ask(session, "Hello there").text
