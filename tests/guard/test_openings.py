"""Openings as candidates, and answers that are taken back and steered anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesteer_edge.guard.events import Refused, Steered, Step
from safesteer_edge.guard.protocols import Block, Proposal
from safesteer_edge.guard.reranking import (
    Reranker,
    Tilt,
    choose_eagerly,
    choose_lazily,
    with_openings,
)
from tests.guard.candidate_sets import CandidateSet, candidate_sets, scores, tilts
from tests.guard.exact_law import EDGE_ERROR, GivenUniforms, exact_law
from tests.guard.plain_probes import PlainProbe, by_token
from tests.guard.scripted_answers import (
    END,
    POLICY,
    REFUSAL_TEXT,
    ScriptedAnswer,
    random_answer,
    refusal_tokens,
)
from tests.guard.scripted_engine import Prefix, ScriptedEngine

LAW_ERROR = 256 * EDGE_ERROR
shares = st.sampled_from([0.25, 0.5, 0.75]) | st.floats(0.01, 0.99)
# The score of a block is that of its last token: what is before it must not count.
block_scores = st.lists(scores, min_size=1, max_size=3)
_FIRST_BLOCK_TOKEN = 500


def joint_proposal(
    candidates: CandidateSet, scores_of_blocks: Sequence[float], share: float, *, greedy: bool
) -> tuple[ScriptedEngine, PlainProbe, Proposal]:
    """A step whose candidates openings have joined."""
    engine, proposal = candidates.proposed_by(greedy=greedy)
    ends = {_FIRST_BLOCK_TOKEN + i: score for i, score in enumerate(scores_of_blocks)}
    blocks: list[Block] = [(9, 9, end) for end in ends]
    joined = with_openings(proposal, blocks, share, np.random.default_rng(0))
    return engine, by_token({**candidates.token_scores, **ends, 9: 1.0}), joined


def p_prime(candidates: CandidateSet, n_blocks: int, share: float) -> NDArray[np.float64]:
    """The definition."""
    _, proposal = candidates.proposed_by(greedy=False)
    return np.concatenate(
        [(1 - share) * np.exp(proposal.log_probs), np.full(n_blocks, share / n_blocks)]
    )


@given(candidates=candidate_sets(max_size=3), n_blocks=st.integers(1, 4), share=shares)
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_among_tokens_and_openings_is_distributed_as_p_prime(
    candidates: CandidateSet, n_blocks: int, share: float
):
    _, proposal = candidates.proposed_by(greedy=False)
    blocks = [(9, i) for i in range(n_blocks)]
    law = np.zeros(len(proposal.log_probs) + n_blocks)
    for drawn, prob in enumerate(np.exp(proposal.log_probs)):
        by_sampler = replace(proposal, drawn=drawn)
        law += prob * exact_law(
            lambda rng, by_sampler=by_sampler: with_openings(by_sampler, blocks, share, rng).drawn,
            len(law),
        )
    expected = p_prime(candidates, n_blocks, share)
    np.testing.assert_allclose(law, expected, atol=LAW_ERROR)
    joined = with_openings(proposal, blocks, share, np.random.default_rng(0))
    np.testing.assert_allclose(np.exp(joined.log_probs), expected, atol=1e-12)


@pytest.mark.parametrize("reranker", [choose_lazily, choose_eagerly])
@given(candidates=candidate_sets(max_size=3), ends=block_scores, share=shares, tilt=tilts)
@settings(max_examples=40, deadline=None)
def test_the_choice_among_tokens_and_openings_is_distributed_exactly_as_q_over_p_prime(
    reranker: Reranker,
    candidates: CandidateSet,
    ends: list[float],
    share: float,
    tilt: Tilt,
):
    def outcome(rng: np.random.Generator, drawn: int) -> int:
        engine, probe, joined = joint_proposal(candidates, ends, share, greedy=False)
        return reranker(engine, probe, replace(joined, drawn=drawn), tilt, rng).index

    _, proposal = candidates.proposed_by(greedy=False)
    all_scores = np.array([*candidates.scores_in_order(proposal), *ends])
    probs = p_prime(candidates, len(ends), share)
    law = np.zeros(len(probs))
    for drawn, prob in enumerate(probs):
        law += prob * exact_law(lambda rng, drawn=drawn: outcome(rng, drawn), len(probs))
    log_weights = np.log(probs) - tilt.strength * np.maximum(0.0, all_scores - tilt.threshold)
    q = np.exp(log_weights - log_weights.max())
    np.testing.assert_allclose(law, q / q.sum(), atol=LAW_ERROR)


@given(candidate_sets(), block_scores, shares, tilts)
@settings(max_examples=200, deadline=None)
def test_greedy_lazy_and_eager_choose_the_same_of_tokens_and_openings(
    candidates: CandidateSet, ends: list[float], share: float, tilt: Tilt
):
    numbers = GivenUniforms().as_generator
    engine, probe, joined = joint_proposal(candidates, ends, share, greedy=True)
    lazy = choose_lazily(engine, probe, joined, tilt, numbers)
    other, probe, _ = joint_proposal(candidates, ends, share, greedy=True)
    eager = choose_eagerly(other, probe, joined, tilt, numbers)
    assert (lazy.index, lazy.score, lazy.intervened) == (eager.index, eager.score, eager.intervened)
    assert lazy.token_scores == eager.token_scores
    is_block = lazy.index >= len(joined.token_ids)
    assert lazy.token_scores == ((1.0, 1.0, lazy.score) if is_block else (lazy.score,))
    assert engine.n_evaluated_states <= len(joined.log_probs)


# -- a whole answer --------------------------------------------------------------------------------

_HARM, _OFFER = 1, 2
_STEERING = replace(
    POLICY,
    threshold=0.3,
    risk_limit=0.5,
    risk_min_steps=2,
    steer_from=0.2,
    retries=2,
    opening_share=0.9,
)
_NO = "No way"


def harmful_answer(*, opening_leads_to: float = 0.0) -> ScriptedAnswer:
    """A model that says harm, but for what comes behind an opening."""
    no = tuple(refusal_tokens(_NO))

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        if prefix[: len(no)] == no:
            return {_OFFER if len(prefix) < len(no) + 3 else END: 1.0}
        return {_HARM if len(prefix) < 8 else END: 1.0}

    pieces = {_HARM: b" bad", _OFFER: b" good"}
    pieces |= {token_id: bytes([token_id - 10_000]) for token_id in refusal_tokens(_NO + "Stop\n")}
    token_scores = {_HARM: 0.9, _OFFER: opening_leads_to}
    return ScriptedAnswer(
        engine=ScriptedEngine(next_tokens, pieces, end_ids={END}),
        probe=PlainProbe(lambda _position, token_id: token_scores.get(token_id, 0.0)),
        policy=_STEERING,
        openings=(_NO,),
    )


def test_an_answer_that_turns_harmful_is_led_to_a_refusal_in_the_models_own_words():
    script = harmful_answer()
    answer = script.decode()
    assert answer.text == "No way good good good"
    assert answer.finish_reason == "stop" and answer.refusal is None
    assert (answer.n_steered, answer.opening) == (1, _NO)
    [steered] = [event for event in script.events if isinstance(event, Steered)]
    assert (steered.attempt, steered.reason, steered.n_tokens_taken_back) == (1, "risk_limit", 2)
    assert "".join(step.text for step in script.steps if step.opening) == _NO
    assert " bad" not in script.said


@pytest.mark.parametrize(
    ("least", "text"),
    [
        (0, "No way good. bad bad good. bad bad bad"),
        (2, "No way good."),
        (3, "No way good. bad bad good."),
        (99, "No way good. bad bad good. bad bad bad"),
    ],
)
def test_behind_an_opening_an_answer_may_end_with_a_sentence_of_some_length(least: int, text: str):
    script = harmful_answer()
    no = tuple(refusal_tokens(_NO))
    stop = 77

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        if prefix[: len(no)] != no:
            return {_HARM: 1.0}
        behind = len(prefix) - len(no)
        return {
            END if behind > 8 else {0: _OFFER, 1: stop, 4: _OFFER, 5: stop}.get(behind, _HARM): 1.0
        }

    pieces = {**script.engine.pieces, stop: b"."}
    script.engine = ScriptedEngine(next_tokens, pieces, end_ids={END})
    script.probe = PlainProbe(
        lambda position, token_id: 0.9 * (token_id == _HARM and position < len(no))
    )
    script.opening_tokens = least
    answer = script.decode()
    assert answer.text == text
    assert answer.finish_reason == "stop"


def test_what_was_asked_is_acted_on_once_and_the_conversation_remembers_it():
    script = harmful_answer()
    script.policy = replace(_STEERING, prompt_weight=32)
    script.prompt_score = 1.0
    answer = script.decode()
    assert answer.refusal is None and answer.n_steered == 1
    assert answer.risk is not None and answer.risk < 0.2
    assert answer.conversation_risk is not None and answer.conversation_risk > 0.5


def test_the_fixed_refusal_is_the_last_resort_after_the_retries():
    script = harmful_answer(opening_leads_to=1.0)
    script.policy = replace(_STEERING, risk_decay=0.5)
    answer = script.decode()
    assert answer.n_steered == 2
    assert answer.text.endswith(REFUSAL_TEXT) and isinstance(script.events[-1], Refused)
    assert " bad" not in script.said


def test_without_openings_retries_or_steering_it_is_the_fixed_refusal_at_once():
    for change in ({"policy": replace(_STEERING, retries=0)}, {"mode": "refuse"}):
        script = replace(harmful_answer(), **change)
        answer = script.decode()
        assert answer.n_steered == 0 and answer.text == REFUSAL_TEXT


def test_words_put_into_its_mouth_are_taken_back_with_the_rest():
    script = harmful_answer()
    script.given = (_HARM, _HARM, _HARM)
    answer = script.decode()
    assert answer.text == "No way good good good"


def test_no_opening_joins_where_the_text_so_far_must_not_be_left():
    script = harmful_answer()
    asked: list[str] = []

    def is_open(text: str) -> bool:
        asked.append(text)
        return True

    script.no_opening_in = is_open
    answer = script.decode()
    assert asked and all(text == "" for text in asked)  # what is unsettled has been taken back
    assert answer.n_steered == len(asked) and not any(step.opening for step in script.steps)


def test_an_opening_that_does_not_fit_the_context_is_left_out():
    script = harmful_answer()
    script.engine.n_ctx = len(refusal_tokens(_NO))
    events = list(script.start().events())
    assert any(isinstance(event, Steered) for event in events)
    assert not any(isinstance(event, Step) and event.opening for event in events)


@example(22356, True, 1)  # a character was half written where it was taken back
@given(st.integers(0, 2**20), st.booleans(), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_what_is_taken_back_was_never_said(seed: int, greedy: bool, limit: int):
    """Decoded anew from where it was steered, the answer has the same candidates and scores."""
    script = random_answer(seed, greedy=greedy, score_levels=(0.0, 0.4, 0.9))
    script.policy = replace(
        _STEERING,
        risk_limit=limit / 10,
        steer_from=0.05,
        look_ahead=seed % 4,
        look_ahead_limit=limit / 10,
    )
    script.openings = ("Stop",)
    script.decode()
    last = max((i for i, e in enumerate(script.events) if isinstance(e, Steered)), default=None)
    if last is None:
        return
    steered = script.events[last]
    assert isinstance(steered, Steered)
    n_before = sum(isinstance(event, Step) for event in script.events[:last])
    assert steered.step == n_before
    assert steered.n_tokens_taken_back <= n_before
    assert sum(call.name == "rewind" for call in script.engine.calls) == sum(
        isinstance(event, Steered) for event in script.events
    )


def test_an_answer_too_short_for_the_risk_does_not_end_before_its_prompts_alarm():
    script = harmful_answer()
    script.policy = replace(_STEERING, prompt_limit=0.5, risk_min_steps=99)
    script.prompt_score = 0.9
    answer = script.decode()
    assert (answer.n_steered, answer.text) == (1, "No way good good good")
