"""Looking one token ahead and going back: the sequence is always as if nothing had been tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import EngineError, PromptTooLongError
from safesteer_edge.guard.policy import N_LOOKED_AHEAD, SamplingSettings
from tests.engine.open_engine import (
    F32_TOLERANCE,
    Float32Array,
    OpenEngine,
    open_engine,
    random_prompt,
    random_vector,
)

PROMPT = random_prompt(np.random.default_rng(1), 10)
LAYERS = (0, 2)
PROVISIONAL, OTHERS = 50, [60, 70, 80]


@pytest.fixture(params=["llama", "mamba"])
def path(request: pytest.FixtureRequest, tiny_llama_path: Path, tiny_mamba_path: Path) -> Path:
    """A transformer's KV cache, then a recurrent state, which cannot be rolled back."""
    return {"llama": tiny_llama_path, "mamba": tiny_mamba_path}[request.param]


def fresh_logits(
    path: Path, prompt: Sequence[int], answer: Sequence[int], vector: Float32Array | None = None
) -> Float32Array:
    """The logits of a new engine that was given the answer's tokens one by one."""
    with open_engine(path) as opened:
        opened.prefill(prompt, control_vector=vector)
        if answer:
            opened.feed(answer)
        return opened.next_logits()


def assert_logits(actual: Float32Array, expected: Float32Array) -> None:
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("accepted", [PROVISIONAL, *OTHERS])
def test_after_a_provisional_token_and_a_batch_any_of_them_can_be_accepted(
    path: Path, accepted: int
) -> None:
    with open_engine(path, layers=LAYERS) as opened:
        opened.prefill(PROMPT)
        provisional_state = opened.engine.evaluate(PROVISIONAL)
        other_states = opened.engine.evaluate_candidates(OTHERS)
        opened.engine.accept(accepted)
        logits = opened.next_logits()
        next_states = opened.feed([90, 100])
        next_logits = opened.next_logits()
    with open_engine(path, layers=LAYERS) as fresh:
        fresh.prefill(PROMPT)
        expected_state = fresh.feed([accepted])[0]
        assert_logits(logits, fresh.next_logits())
        assert_logits(next_states, fresh.feed([90, 100]))
        assert_logits(next_logits, fresh.next_logits())
    states = dict(zip([PROVISIONAL, *OTHERS], [provisional_state, *other_states], strict=True))
    assert_logits(states[accepted], expected_state)


def test_candidates_come_in_several_batches(path: Path) -> None:
    with open_engine(path, layers=LAYERS, n_candidates=6) as opened:
        opened.prefill(PROMPT)
        opened.engine.evaluate(PROVISIONAL)
        first = opened.engine.evaluate_candidates(OTHERS[:2])
        second = opened.engine.evaluate_candidates(OTHERS[2:])
        single = opened.engine.evaluate(90)
        opened.engine.accept(OTHERS[1])
        logits = opened.next_logits()
    with open_engine(path, layers=LAYERS) as fresh:
        fresh.prefill(PROMPT)
        expected = fresh.engine.evaluate_candidates([*OTHERS, 90])
    assert_logits(np.stack([*first, *second, single]), expected)
    assert_logits(logits, fresh_logits(path, PROMPT, [OTHERS[1]]))


def test_a_long_answer_of_mixed_steps_ends_where_a_plain_one_does(path: Path) -> None:
    rng = np.random.default_rng(2)
    answer: list[int] = []
    with open_engine(path, layers=LAYERS) as opened:
        opened.prefill(PROMPT)
        for _ in range(20):
            tokens = rng.choice(np.arange(5, 320), 8, replace=False).tolist()
            n_single, n_batch = rng.integers(0, 2), rng.integers(1, 8)
            if n_single:
                opened.engine.evaluate(tokens[0])
            opened.engine.evaluate_candidates(tokens[n_single : n_single + n_batch])
            answer.append(tokens[rng.integers(0, n_single + n_batch)])
            opened.engine.accept(answer[-1])
        logits = opened.next_logits()
    assert_logits(logits, fresh_logits(path, PROMPT, answer))


def test_taking_back_and_appending_equals_never_having_said_it(path: Path) -> None:
    with open_engine(path, layers=LAYERS) as opened:
        opened.prefill(PROMPT)
        opened.feed([50, 60, 70, 80])
        opened.engine.evaluate(90)
        opened.engine.evaluate_candidates([91, 92])
        opened.engine.take_back(3)
        opened.engine.append([100, 101])
        logits = opened.next_logits()
        opened.feed([102])
        opened.engine.take_back(4)  # all of the answer, appended tokens included
        opened.engine.append([51])
        again = opened.next_logits()
    assert_logits(logits, fresh_logits(path, PROMPT, [50, 100, 101]))
    assert_logits(again, fresh_logits(path, PROMPT, [51]))


def test_taking_back_under_a_control_vector_steers_the_same_positions_again(path: Path) -> None:
    vector = random_vector(scale=0.5)
    with open_engine(path, layers=LAYERS) as opened:
        opened.prefill(PROMPT, control_vector=vector)
        opened.feed([50, 60, 70])
        opened.engine.take_back(2)
        opened.engine.append([100, 101])
        logits = opened.next_logits()
    assert_logits(logits, fresh_logits(path, PROMPT, [50, 100, 101], vector))


def test_only_the_answer_can_be_taken_back(path: Path) -> None:
    with open_engine(path) as opened:
        opened.prefill(PROMPT)
        opened.feed([50])
        with pytest.raises(EngineError, match="take back 2"):
            opened.engine.take_back(2)
        with pytest.raises(EngineError, match="take back 99"):
            opened.engine.take_back(99)
        assert_logits(opened.next_logits(), fresh_logits(path, PROMPT, [50]))


def test_free_room_counts_the_main_sequence_alone(path: Path) -> None:
    with open_engine(path) as opened:
        engine, n_ctx = opened.engine, opened.context.n_ctx
        assert engine.n_free == n_ctx
        opened.prefill(PROMPT)
        assert engine.n_free == n_ctx - 10
        engine.evaluate(50)
        engine.evaluate_candidates(OTHERS)
        assert engine.n_free == n_ctx - 10
        engine.accept(50)
        assert engine.n_free == n_ctx - 11
        engine.append([60, 61])
        assert engine.n_free == n_ctx - 13
        engine.take_back(2)
        assert engine.n_free == n_ctx - 11
        opened.prefill(PROMPT[:4])
        assert engine.n_free == n_ctx - 4


def test_forward_passes_of_decoding_steps_are_counted(path: Path) -> None:
    with open_engine(path) as opened:
        opened.prefill(PROMPT)
        assert opened.engine.n_forward_passes == 0
        opened.feed([50])
        assert opened.engine.n_forward_passes == 1
        opened.engine.evaluate_candidates(OTHERS)
        assert opened.engine.n_forward_passes == 2


def refuses(opened: OpenEngine, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        opened.engine.propose()


def test_there_is_nothing_to_propose_before_a_prompt_or_while_a_candidate_is_weighed(
    path: Path,
) -> None:
    with open_engine(path) as opened:
        refuses(opened, "no prompt")
        opened.prefill(PROMPT)
        logits = opened.next_logits()
        opened.engine.evaluate(50)
        refuses(opened, "accept a candidate")  # the logits in native memory are the candidate's
        opened.engine.accept(50)
        opened.engine.take_back(1)
        refuses(opened, "append tokens")
        opened.prefill(PROMPT)
        assert_logits(opened.next_logits(), logits)


def test_only_an_evaluated_candidate_can_be_accepted_and_only_at_its_step(path: Path) -> None:
    with open_engine(path) as opened:
        opened.prefill(PROMPT)
        opened.engine.evaluate(50)
        with pytest.raises(EngineError, match="token 60 was not evaluated"):
            opened.engine.accept(60)
        opened.engine.accept(50)
        with pytest.raises(EngineError, match="token 50 was not evaluated"):
            opened.engine.accept(50)


def test_a_candidate_is_evaluated_once_a_step(path: Path) -> None:
    with open_engine(path) as opened:
        opened.prefill(PROMPT)
        opened.engine.evaluate(50)
        for tokens in ([60, 50], [60, 60]):
            with pytest.raises(EngineError, match="twice"):
                opened.engine.evaluate_candidates(tokens)
        with pytest.raises(EngineError, match="twice"):
            opened.engine.evaluate(50)
        opened.engine.evaluate_candidates([60])
        opened.engine.accept(50)
        assert_logits(opened.next_logits(), fresh_logits(path, PROMPT, [50]))


def test_more_candidates_than_the_context_has_sequences_for_are_refused(path: Path) -> None:
    with open_engine(path, n_candidates=3) as opened:
        opened.prefill(PROMPT)
        opened.engine.evaluate(50)
        with pytest.raises(EngineError, match="4 candidates"):
            opened.engine.evaluate_candidates(OTHERS)
        opened.engine.evaluate_candidates(OTHERS[:2])
        opened.engine.accept(OTHERS[1])
        assert_logits(opened.next_logits(), fresh_logits(path, PROMPT, [OTHERS[1]]))


def test_a_full_context_is_an_error_that_the_engine_survives(tiny_llama_path: Path) -> None:
    prompt = random_prompt(np.random.default_rng(3), 240)
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(prompt)
        opened.engine.append(range(20, 30))
        opened.engine.evaluate(50)
        assert opened.engine.n_free == 6
        with pytest.raises(PromptTooLongError, match="256 tokens is full"):
            opened.engine.evaluate_candidates(range(60, 66))
        opened.engine.accept(50)
        with pytest.raises(PromptTooLongError, match="256 tokens is full"):
            opened.engine.append(range(6))
        opened.engine.take_back(3)
        opened.engine.evaluate_candidates([70, 71])
        opened.engine.accept(71)
        logits = opened.next_logits()
    assert_logits(logits, fresh_logits(tiny_llama_path, prompt, [*range(20, 28), 71]))


@pytest.mark.parametrize("seed", range(8))
def test_any_script_of_turns_and_steps_ends_where_a_plain_run_does(path: Path, seed: int) -> None:
    rng = np.random.default_rng([seed, 100])
    base = random_prompt(rng, 12)
    with open_engine(path, layers=LAYERS) as opened:
        for _ in range(3):
            n_common, n_new = (int(n) for n in rng.integers(1, 10, 2))
            prompt = base[:n_common] + random_prompt(rng, n_new)
            answer: list[int] = []
            opened.prefill(prompt)
            for _ in range(6):
                tokens = rng.choice(np.arange(5, 320), 5, replace=False).tolist()
                step = rng.choice(["evaluate", "candidates", "take_back", "append"])
                if step in ("evaluate", "candidates"):
                    opened.engine.evaluate(tokens[0])
                if step == "candidates":
                    opened.engine.evaluate_candidates(tokens[1:])
                if step == "take_back" or rng.random() < 0.2:
                    n_taken = int(rng.integers(0, len(answer) + 1))
                    opened.engine.take_back(n_taken)
                    answer = answer[: len(answer) - n_taken]
                    opened.engine.append(tokens[:1])
                    answer += tokens[:1]
                elif step == "append":
                    opened.engine.append(tokens)
                    answer += tokens
                else:
                    answer.append(tokens[int(rng.integers(0, 5)) if step == "candidates" else 0])
                    opened.engine.accept(answer[-1])
            assert_logits(opened.next_logits(), fresh_logits(path, prompt, answer))


def test_candidates_leave_no_cells_behind(tiny_llama_path: Path) -> None:
    """A leak of one cell a step would fill the context long before it is full of text."""
    answer: list[int] = []
    with open_engine(tiny_llama_path, n_candidates=8) as opened:
        opened.prefill(PROMPT)
        while opened.engine.n_free >= 9:
            first = 20 + len(answer)
            opened.engine.evaluate(first)
            opened.engine.evaluate_candidates(range(first + 1, first + 8))
            answer.append(first + len(answer) % 8)
            opened.engine.accept(answer[-1])
        assert len(answer) == 256 - len(PROMPT) - 8
        assert_logits(opened.next_logits(), fresh_logits(tiny_llama_path, PROMPT, answer))


def test_looking_ahead_goes_on_as_greedy_decoding_does_and_leaves_nothing_behind(
    path: Path,
) -> None:
    n_ahead = 4
    with open_engine(path, layers=LAYERS) as opened:
        opened.prefill(PROMPT, sampling=SamplingSettings(temperature=0, top_k=5))
        opened.feed([50, 60])
        before = opened.next_logits()
        proposal, states = opened.engine.look_ahead(n_ahead)
        assert (opened.next_logits() == before).all()
        assert proposal.token_ids.tolist() == np.argsort(-before)[:N_LOOKED_AHEAD].tolist()
        opened.engine.evaluate_blocks([proposal.candidate(3)])
        opened.engine.accept_block(proposal.candidate(3))
        logits = opened.next_logits()
    assert_logits(logits, fresh_logits(path, PROMPT, [50, 60, *proposal.candidate(3)]))
    for block, own in zip(proposal.ahead, states, strict=True):
        with open_engine(path, layers=LAYERS) as fresh:
            fresh.prefill(PROMPT, sampling=SamplingSettings(temperature=0, top_k=5))
            fresh.feed([50, 60])
            token_id, said = block[0], list[int]()
            while len(said) < len(block):
                assert_logits(own[len(said)], fresh.feed([token_id])[0])
                said.append(token_id)
                token_id = int(fresh.engine.propose().token_ids[0])
        assert tuple(said) == block and len(block) <= n_ahead
