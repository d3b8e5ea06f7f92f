"""What a turn tells its caller, and what is left of it when it is over."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from safesteer_edge.errors import EngineError, GuardError, InputError, PromptTooLongError
from safesteer_edge.guard.events import (
    PrefillDone,
    Refused,
    Step,
    TextDelta,
    event_from_json,
    event_to_json,
)
from safesteer_edge.session.session import Session, open_session
from tests.guarded_tiny import (
    ALARMED,
    DRAWN,
    PATIENT_POLICY,
    POLICY,
    QUIET,
    REFUSAL_TEXT,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened

# Refuses some answers of the wavering probe and lets others pass.
IMPATIENT_POLICY = replace(POLICY, risk_limit=0.45, risk_min_steps=6)


@pytest.mark.parametrize("sampling", ["greedy", "drawn"])
@pytest.mark.parametrize("rerank", ["lazy", "eager", "paper"])
@pytest.mark.parametrize("bias", [QUIET, WAVERING, ALARMED])
def test_what_is_shown_is_the_text_of_the_turn(
    guarded_tiny: GuardedTiny, bias: float, rerank: str, sampling: str
):
    changes = {"sampling": DRAWN} if sampling == "drawn" else {}
    bundle = guarded_tiny.bundle(bias, IMPATIENT_POLICY)
    with opened(guarded_tiny, bundle, rerank=rerank, **changes) as session:
        turn = ask(session, "Hello there")  # which checks it
    assert all(event_from_json(event_to_json(event)) == event for event in turn.events)


def test_each_token_is_counted_before_its_text_is_shown(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        turn = ask(session, "Hello there")
    counted = shown = ""
    for event in turn.events:
        if isinstance(event, Step):
            counted += event.text
        elif isinstance(event, TextDelta):
            shown += event.text
            assert counted.startswith(shown)
    assert counted == shown == turn.text


def test_the_summary_of_a_turn_agrees_with_its_steps(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        started_s = time.perf_counter()
        turn = ask(session, "Hello there")
        took_s = time.perf_counter() - started_s
        info, load_s = session.info, session.info.load_s
    guard, usage, timings = turn.ended.guard, turn.ended.usage, turn.ended.timings
    assert (guard.mode, guard.rerank, guard.bundle) == ("steer", "lazy", info.bundle)
    assert guard.max_score == max(turn.scores)
    assert guard.mean_score == pytest.approx(sum(turn.scores) / len(turn.scores))
    assert guard.interventions == sum(not step.accepted for step in turn.steps)
    assert guard.interventions > 0
    n_evaluated = sum(len(step.candidates) or 1 for step in turn.steps)
    assert guard.evaluated_candidates == n_evaluated
    assert guard.risk == turn.steps[-1].risk
    assert usage.prompt_tokens == turn.prefill.n_prompt_tokens
    assert len(turn.steps) <= usage.forward_passes <= n_evaluated
    assert 0 < timings.prefill_s <= timings.ttft_s < took_s
    assert 0 < timings.decode_s < took_s
    assert timings.tokens_per_second == pytest.approx(len(turn.steps) / timings.decode_s)
    assert load_s > 0


def test_candidates_are_listed_where_they_were_evaluated(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(WAVERING, PATIENT_POLICY)) as session:
        steps = ask(session, "Hello there").steps
    assert any(step.candidates for step in steps)
    for step in steps:
        chosen = [item for item in step.candidates if item.token_id == step.token_id]
        assert not step.candidates or chosen[0].score == step.score
        assert step.accepted or len(step.candidates) > 1
        assert step.logprob <= 0


def test_without_a_guard_there_are_no_scores(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, None) as session:
        turn = ask(session, "Hello there")
        assert session.policy is None
        assert session.info.warnings == ("the guard is off: answers are not checked",)
    assert turn.prefill.prompt_score is None
    assert {(step.score, step.risk, step.candidates) for step in turn.steps} == {(None, None, ())}
    guard = turn.ended.guard
    assert (guard.mode, guard.rerank, guard.bundle, guard.refused) == ("off", None, None, False)
    assert (guard.max_score, guard.mean_score, guard.risk) == (None, None, None)


def test_the_prompts_own_score_is_the_probes(guarded_tiny: GuardedTiny):
    scores = {}
    for bias in (QUIET, WAVERING, ALARMED):
        with opened(guarded_tiny, guarded_tiny.bundle(bias)) as session:
            scores[bias] = ask(session, "Hello there").prefill.prompt_score
    assert scores[QUIET] < 1e-9
    assert 0.001 < scores[WAVERING] < 0.999
    assert scores[ALARMED] > 1 - 1e-9


def test_an_answer_ends_at_its_token_limit(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), max_tokens=5) as session:
        turn = ask(session, "Hello there")
    assert (turn.ended.finish_reason, len(turn.steps)) == ("length", 5)


def test_an_answer_ends_where_the_context_does(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET), n_ctx=64, max_tokens=512) as session:
        n_ctx = session.info.n_ctx
        turn = ask(session, "Hello there")
    assert turn.ended.finish_reason == "length"
    n_spare = 9  # top-k candidates and one
    n_tokens = turn.ended.usage.prompt_tokens + turn.ended.usage.completion_tokens
    assert n_ctx - n_tokens < n_spare


def test_a_prompt_longer_than_the_context_is_refused_and_forgotten(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        with pytest.raises(PromptTooLongError, match="room for"):
            next(session.ask("word " * 600))
        with pytest.raises(PromptTooLongError, match="room for"):
            session.check_fits("word " * 600)
        assert len(session.conversation) == 0
        session.check_fits("Hello there", system="Be brief.")
        ask(session, "Hello there")


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_prompt_is_refused(guarded_tiny: GuardedTiny, text: str):
    with (
        opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session,
        pytest.raises(InputError, match="the prompt is empty"),
    ):
        next(session.ask(text))


def test_half_of_a_surrogate_pair_is_asked_as_a_replacement(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        ask(session, "a \udcff path from a shell")


def test_a_closed_session_says_so(guarded_tiny: GuardedTiny):
    session = open_session(guarded_tiny.settings(guarded_tiny.bundle(QUIET)))
    session.close()
    session.close()
    with pytest.raises((EngineError, GuardError), match="closed"):
        next(session.ask("Hello there"))


def test_a_refusal_says_why_and_takes_the_tail_back(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(ALARMED)) as session:
        turn = ask(session, "Hello there")
    refused = turn.events[-2]
    assert isinstance(refused, Refused)
    assert turn.ended.refusal == refused
    assert (refused.reason, refused.n_tokens_taken_back) == ("no_safe_candidate", len(turn.steps))
    assert turn.text == REFUSAL_TEXT
    assert turn.ended.finish_reason == "refused"
    assert turn.ended.guard.refused


def test_the_first_event_comes_before_the_first_token(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        events = session.ask("Hello there")
        first = next(events)
        assert isinstance(first, PrefillDone)
        assert math.isfinite(first.prefill_s)
        assert (first.n_media_tokens, first.n_reused_tokens, first.vector_active) == (0, 0, False)


def test_info_names_what_runs(guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, guarded_tiny.bundle(QUIET)) as session:
        info = session.info
    assert info.model_path == guarded_tiny.model
    assert (info.model_name, info.architecture) == (guarded_tiny.model.stem, "llama")
    assert (info.quantization, info.n_ctx, info.bundle) == ("F32", 512, "tiny-30")
    assert (info.probe_provider, info.hidden_state_route) == ("CPU", "layer_input")
    assert info.warnings == ()
    assert len(info.template_sha256) == 64


def test_a_session_can_be_made_from_an_open_runtime(guarded_tiny: GuardedTiny):
    from safesteer_edge.session.runtime import open_runtime

    settings = guarded_tiny.settings(guarded_tiny.bundle(QUIET))
    with Session(open_runtime(settings), settings) as session:
        assert ask(session, "Hello there").text
