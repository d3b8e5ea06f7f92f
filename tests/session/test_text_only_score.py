"""Words beside a picture are scored as if there were none, so that it hides nothing of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.probe.probe import OnnxProbe
from tests.guarded_tiny import POLICY, QUIET, WAVERING, GuardedTiny
from tests.session.turns import ask, opened

QUESTIONS = [f"{word} this, please?" for word in ("Paint", "Sell", "Count", "Name", "Turn", "Burn")]

# A prompt that shares its beginning with the last one comes in other batches.
TOLERANCE = 5e-3


def score(turn) -> float:
    assert turn.prefill.prompt_score is not None
    return turn.prefill.prompt_score


def test_the_higher_one_counts_of_the_prompt_and_its_words(
    guarded_tiny: GuardedTiny, picture: Path
):
    with opened(
        guarded_tiny, guarded_tiny.bundle(WAVERING), mmproj=guarded_tiny.projector
    ) as session:
        n_words_higher = 0
        for question in QUESTIONS:
            session.reset()
            words = score(ask(session, question))
            session.reset()
            both = score(ask(session, question, images=[picture]))
            assert both >= words - TOLERANCE
            n_words_higher += both == pytest.approx(words, abs=TOLERANCE)
    assert 0 < n_words_higher < len(QUESTIONS)


def test_words_of_a_later_turn_are_scored_alone_while_a_picture_is_in_the_context(
    guarded_tiny: GuardedTiny, picture: Path
):
    with opened(
        guarded_tiny, guarded_tiny.bundle(WAVERING), mmproj=guarded_tiny.projector
    ) as session:
        for question in QUESTIONS:
            session.reset()
            words = score(ask(session, question))
            session.reset()
            ask(session, "", images=[picture])
            assert score(ask(session, question)) >= words - TOLERANCE


def test_the_words_count_as_if_no_system_prompt_stood_before_them(
    guarded_tiny: GuardedTiny, picture: Path
):
    system = "You are a careful assistant for a school."
    with opened(
        guarded_tiny, guarded_tiny.bundle(WAVERING), mmproj=guarded_tiny.projector
    ) as session:
        for question in QUESTIONS:
            session.reset()
            words = score(ask(session, question))
            session.reset()
            assert (
                score(ask(session, question, system=system, images=[picture])) >= words - TOLERANCE
            )


def test_a_look_at_the_words_changes_no_byte_of_the_answer(
    guarded_tiny: GuardedTiny, picture: Path
):
    answers = []
    for bundle in (guarded_tiny.bundle(QUIET), None):
        with opened(guarded_tiny, bundle, mmproj=guarded_tiny.projector) as session:
            turns = [ask(session, question, images=[picture]) for question in QUESTIONS[:3]]
            answers.append([(turn.text, turn.prefill.n_reused_tokens) for turn in turns])
    assert answers[0] == answers[1]
    assert answers[0][1][1] > 0


@pytest.mark.parametrize("n_letters", [100, 380])
def test_a_context_full_of_the_last_conversation_has_room_for_them(
    guarded_tiny: GuardedTiny, picture: Path, n_letters: int
):
    with opened(
        guarded_tiny, guarded_tiny.bundle(QUIET), mmproj=guarded_tiny.projector, max_tokens=2
    ) as session:
        ask(session, "a" * n_letters)
        session.reset()
        turn = ask(session, "b" * 150, images=[picture])
    assert turn.ended.finish_reason == "length"
    assert turn.prefill.n_reused_tokens > 0  # what is not shared went first


def test_continuing_an_answer_keeps_the_score_of_its_prompt(
    guarded_tiny: GuardedTiny, picture: Path
):
    with opened(
        guarded_tiny, guarded_tiny.bundle(QUIET), mmproj=guarded_tiny.projector, max_tokens=3
    ) as session:
        asked = ask(session, QUESTIONS[0], images=[picture])
        first, *_, last = session.continue_answer()
    assert isinstance(last, TurnEnded)
    assert first.prompt_score == asked.prefill.prompt_score  # type: ignore[union-attr]


def test_words_that_cannot_be_scored_end_in_a_refusal(
    guarded_tiny: GuardedTiny, picture: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first score of the turn, that of the words, is lost; the picture's is not."""
    n_scored = 0
    original = OnnxProbe.score

    def losing(self, states):
        nonlocal n_scored
        n_scored += 1
        scores = original(self, states)
        return np.full_like(scores, np.nan) if n_scored == 1 else scores

    with opened(
        guarded_tiny, guarded_tiny.bundle(QUIET, POLICY), mmproj=guarded_tiny.projector
    ) as session:
        monkeypatch.setattr(OnnxProbe, "score", losing)
        turn = ask(session, QUESTIONS[0], images=[picture])
    assert turn.ended.finish_reason == "refused"
    assert turn.ended.refusal is not None
    assert turn.ended.refusal.reason == "guard_failed"
