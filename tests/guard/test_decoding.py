"""One guarded answer: what is emitted, what is shown when, and what is taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safesteer_edge.guard.events import Refused, Step, TextDelta
from safesteer_edge.guard.policy import GuardMode
from tests.guard.plain_probes import PlainProbe, by_token
from tests.guard.scripted_answers import (
    END,
    POLICY,
    REFUSAL_TEXT,
    ScriptedAnswer,
    policy_with,
    random_answer,
    refusal_tokens,
    spelled,
)
from tests.guard.scripted_engine import Call, ScriptedEngine

# -- holding back ---------------------------------------------------------------------------------


def test_text_is_held_back_above_the_threshold_and_released_below_it():
    script = spelled(("To", 0.1), (" kill", 0.7), (" a", 0.6), (" process", 0.2), (".", 0.5))
    answer = script.decode()
    assert script.deltas == ["To", " kill a process", "."]
    assert answer.text == "To kill a process."
    assert answer.finish_reason == "stop"
    kinds = [type(event) for event in script.events]
    assert kinds == [Step, TextDelta, Step, Step, Step, TextDelta, Step, TextDelta, Step]


def test_the_first_words_are_held_back_until_the_risk_is_known():
    script = spelled(("The", 0.1), (" sky", 0.1), (" is", 0.1), (" blue", 0.1))
    script.policy = policy_with(risk_min_steps=3)
    assert script.decode().text == "The sky is blue"
    assert script.deltas == ["The sky is", " blue"]


def test_safe_words_are_held_back_while_the_risk_is_high():
    script = spelled(("a", 0.1), ("b", 0.5), ("c", 0.5), ("d", 0.1), ("e", 0.1))
    script.policy = policy_with(risk_limit=0.64)  # calm up to 0.32; means: .1, .3, .37, .3, .26
    assert script.decode().text == "abcde"
    assert script.deltas == ["a", "b", "cd", "e"]


def test_an_answer_too_short_to_know_its_risk_is_shown_when_it_ends():
    script = spelled(("No", 0.1))
    script.policy = policy_with(risk_min_steps=9)
    assert script.decode().text == "No"
    assert [type(event) for event in script.events] == [Step, Step, TextDelta]


def test_a_tail_that_is_not_refused_is_shown_when_the_answer_ends():
    script = spelled(("To", 0.1), (" kill", 0.7))
    script.max_tokens = 2
    assert script.decode().finish_reason == "length"
    assert script.deltas == ["To", " kill"]


def test_a_refusal_takes_the_unsettled_tail_back_from_text_and_sequence():
    script = spelled(("Sure", 0.1), (":", 0.8), (" mix", 0.96), (" the", 0.97), (" acid", 0.99))
    answer = script.decode()
    assert script.deltas == ["Sure"]
    assert answer.refusal == Refused(
        "no_safe_candidate",
        "every continuation looked harmful",
        "\n\n" + REFUSAL_TEXT,
        step=5,
        n_tokens_taken_back=4,
    )
    assert script.events[-1] == answer.refusal
    assert answer.text == f"Sure\n\n{REFUSAL_TEXT}"
    assert script.engine.sequence == [1, *refusal_tokens(f"\n\n{REFUSAL_TEXT}")]
    assert [call.name for call in script.engine.calls[-2:]] == ["take_back", "append"]
    # Nothing of it is hidden from the caller: the steps and scores are all there.
    assert [step.text for step in script.steps] == ["Sure", ":", " mix", " the", " acid"]
    assert answer.scores == pytest.approx([0.1, 0.8, 0.96, 0.97, 0.99])


def test_a_refusal_at_the_first_token_stands_alone():
    script = spelled(("Mix", 0.99))
    script.policy = policy_with(hard_patience=1)
    answer = script.decode()
    assert answer.text == REFUSAL_TEXT
    assert script.engine.sequence == refusal_tokens(REFUSAL_TEXT)


def test_a_refusal_at_the_end_token_takes_the_end_token_back():
    script = spelled(("Sure", 0.1), (" mix", 0.96))
    script.engine.end_ids = {2}  # the second word is an end token now
    script.policy = policy_with(hard_patience=1)
    answer = script.decode()
    assert answer.refusal is not None
    assert answer.refusal.n_tokens_taken_back == 1
    assert answer.text == f"Sure\n\n{REFUSAL_TEXT}"


def test_accumulated_risk_refuses_although_no_token_is_hard():
    script = spelled(*[(f"{n} ", 0.8) for n in range(9)])
    script.policy = policy_with(risk_limit=0.7, risk_min_steps=4)
    answer = script.decode()
    assert answer.refusal is not None
    assert (answer.refusal.reason, answer.refusal.step) == ("risk_limit", 4)
    assert answer.text == REFUSAL_TEXT


def test_a_refusal_that_no_longer_fits_leaves_the_sequence_at_the_settled_text():
    script = spelled(("Sure", 0.1), (" mix", 0.99))
    script.policy = policy_with(hard_patience=1)
    script.engine.n_ctx = 10
    answer = script.start()
    events = list(answer.events())
    assert answer.text == f"Sure\n\n{REFUSAL_TEXT}"
    assert events[-1] == answer.refusal
    assert script.engine.sequence == [1]
    # The conversation keeps the refusal's tokens: the next prompt holds them if it fits.
    assert list(answer.token_ids) == [1, *refusal_tokens(f"\n\n{REFUSAL_TEXT}")]


# -- steering -------------------------------------------------------------------------------------


def two_ways() -> ScriptedAnswer:
    """Token 1 is likelier and harmful, token 2 less likely and harmless; then the end."""
    return ScriptedAnswer(
        ScriptedEngine(
            lambda prefix: {END: 1.0} if prefix else {1: 0.75, 2: 0.25},
            {1: b"Sure", 2: b"Sorry"},
            end_ids={END},
        ),
        by_token({1: 0.9, 2: 0.2}),
    )


def test_steering_takes_the_harmless_way():
    script = two_ways()
    answer = script.decode()
    assert answer.text == "Sorry"
    step = script.steps[0]
    assert (step.token_id, step.accepted, step.score) == (2, False, pytest.approx(0.2))
    assert step.logprob == pytest.approx(-1.386, abs=1e-3)
    assert [candidate.token_id for candidate in step.candidates] == [1, 2]
    assert [c.logprob for c in step.candidates] == pytest.approx([-0.288, -1.386], abs=1e-3)
    assert [c.score for c in step.candidates] == pytest.approx([0.9, 0.2])
    assert (answer.n_interventions, answer.n_evaluated_candidates) == (1, 3)
    assert script.steps[1].candidates == ()


@pytest.mark.parametrize("mode", ["refuse", "monitor"])
def test_other_modes_keep_the_samplers_choice(mode: GuardMode):
    script = two_ways()
    script.mode = mode
    answer = script.decode()
    assert answer.text == "Sure"
    assert answer.n_interventions == 0
    assert Call("evaluate_candidates", (2,)) not in script.engine.calls


def test_risk_hardens_the_tilt():
    # λ = 1.2: ln 3 = 1.1 favours token 1, and 1.2 · 0.7 does not overcome it.
    soft = replace(POLICY, strength=1.2, threshold=0.2)
    script = two_ways()
    script.policy = soft
    assert script.decode().text == "Sure"
    script = two_ways()
    script.policy = replace(soft, risk_gain=2.0)
    script.carried_risk = 0.9
    assert script.decode().text == "Sorry"


def test_risk_is_carried_to_the_next_turn():
    script = spelled(("a", 0.4), ("b", 0.4))
    answer = script.decode()
    assert answer.risk == pytest.approx(0.8 / 3)  # the end token scores 0
    assert answer.conversation_risk == pytest.approx(0.8 / 3)


def test_the_probe_sees_each_candidate_once_and_is_timed():
    script = random_answer(5, greedy=False, score_levels=(0.1, 0.6, 0.9))
    answer = script.decode()
    assert isinstance(script.probe, PlainProbe)
    assert script.probe.n_scored == script.engine.n_evaluated_states
    assert answer.n_evaluated_candidates == script.probe.n_scored
    assert answer.probe_s > 0
