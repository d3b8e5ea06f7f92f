"""Prompts: what the cache keeps of the turn before is reused, and never shows in the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.errors import EngineError, PromptTooLongError
from tests.engine.open_engine import F32_TOLERANCE, OpenEngine, open_engine, random_prompt
from tests.numpy_llama import NumpyLlama

PROMPT = random_prompt(np.random.default_rng(4), 20)
OTHER = random_prompt(np.random.default_rng(5), 20)


@pytest.fixture(scope="module")
def numpy_llama(tiny_llama_path: Path) -> NumpyLlama:
    """The tiny llama in NumPy."""
    return NumpyLlama(tiny_llama_path)


def assert_proposes_like(opened: OpenEngine, model: NumpyLlama, sequence: Sequence[int]) -> None:
    expected = model.forward(sequence).logits[-1]
    np.testing.assert_allclose(opened.next_logits(), expected, rtol=0, atol=F32_TOLERANCE)


def test_a_longer_prompt_reuses_all_that_it_continues(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    with open_engine(tiny_llama_path) as opened:
        first = opened.prefill(PROMPT[:12])
        assert (first.n_prompt_tokens, first.n_reused_tokens) == (12, 0)
        second = opened.prefill(PROMPT)
        assert (second.n_prompt_tokens, second.n_reused_tokens) == (20, 12)
        assert_proposes_like(opened, numpy_llama, PROMPT)


def test_the_next_turn_reuses_the_answer_too(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    answer = [50, 60, 70]
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        opened.feed(answer)
        opened.engine.evaluate_candidates([80, 90])  # left pending: the turn was cancelled
        stats = opened.prefill([*PROMPT, *answer, *OTHER])
        assert stats.n_reused_tokens == 23
        assert_proposes_like(opened, numpy_llama, [*PROMPT, *answer, *OTHER])


@pytest.mark.parametrize("n_common", [0, 1, 11, 19])
def test_a_diverging_prompt_reuses_what_is_common(
    tiny_llama_path: Path, numpy_llama: NumpyLlama, n_common: int
) -> None:
    other = PROMPT[:n_common] + OTHER[n_common:]
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        opened.feed([50, 60])
        assert opened.prefill(other).n_reused_tokens == n_common
        assert_proposes_like(opened, numpy_llama, other)


def test_the_same_prompt_again_evaluates_its_last_token_alone(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    with open_engine(tiny_llama_path, layers=(1,)) as opened:
        first = opened.prefill(PROMPT)
        opened.feed([50, 60])
        again = opened.prefill(PROMPT)
        assert again.n_reused_tokens == 19
        np.testing.assert_allclose(again.last_state, first.last_state, rtol=0, atol=F32_TOLERANCE)
        assert_proposes_like(opened, numpy_llama, PROMPT)


def test_a_shorter_prompt_forgets_the_rest(tiny_llama_path: Path, numpy_llama: NumpyLlama) -> None:
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        assert opened.prefill(PROMPT[:5]).n_reused_tokens == 4
        assert_proposes_like(opened, numpy_llama, PROMPT[:5])
        assert opened.prefill(PROMPT).n_reused_tokens == 5
        assert_proposes_like(opened, numpy_llama, PROMPT)


def test_many_prompts_in_turn_each_equal_a_first_one(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    rng = np.random.default_rng(6)
    with open_engine(tiny_llama_path, n_batch=7, n_candidates=1) as opened:
        for _ in range(25):
            n_common = rng.integers(0, 20)
            prompt = PROMPT[:n_common] + random_prompt(rng, int(rng.integers(1, 12)))
            opened.prefill(prompt)
            assert_proposes_like(opened, numpy_llama, prompt)
            answer = random_prompt(rng, int(rng.integers(1, 4)))
            opened.feed(answer)
            assert_proposes_like(opened, numpy_llama, prompt + answer)


def test_a_recurrent_model_reuses_a_whole_sequence_or_what_is_before_the_last_run(
    tiny_mamba_path: Path,
) -> None:
    opening, other_opening, answer = TokenRun((90, 91)), TokenRun((90, 92)), TokenRun((50,))
    said, more = TokenRun(tuple(PROMPT)), TokenRun(tuple(OTHER))
    turns = [
        ([said, opening], 0),
        ([said, opening, answer, more, opening], 23),  # goes on behind the answer
        ([said, opening, answer, more, other_opening], 43),  # opens the next one otherwise
        ([said, more, opening], 0),  # has less in common than was kept
        ([said, more, opening], 40),
        ([said, more, other_opening, answer, opening], 40),
    ]
    with open_engine(tiny_mamba_path) as opened:
        for items, n_reused in turns:
            assert opened.prefill(items).n_reused_tokens == n_reused
            logits = opened.next_logits()
            with open_engine(tiny_mamba_path) as fresh:
                fresh.prefill(items)
                expected = fresh.next_logits()
            np.testing.assert_allclose(logits, expected, rtol=0, atol=F32_TOLERANCE)
            opened.feed([50])


def test_a_recurrent_model_takes_an_answer_back_to_where_its_prompt_was_read(
    tiny_mamba_path: Path,
) -> None:
    items = [TokenRun(tuple(PROMPT)), TokenRun((90, 91))]
    with open_engine(tiny_mamba_path) as opened:
        opened.prefill(items)
        opened.feed([50, 51, 52])
        opened.engine.take_back(2)
        opened.engine.append([60])
        logits = opened.next_logits()
    with open_engine(tiny_mamba_path) as fresh:
        fresh.prefill(items)
        fresh.feed([50, 60])
        np.testing.assert_allclose(logits, fresh.next_logits(), rtol=0, atol=F32_TOLERANCE)


def test_runs_of_tokens_are_one_prompt_however_they_are_cut(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path) as opened:
        opened.prefill([TokenRun(tuple(PROMPT[:7])), TokenRun(tuple(PROMPT[7:]))])
        logits = opened.next_logits()
        assert opened.prefill([TokenRun(tuple(PROMPT))]).n_reused_tokens == 19
        np.testing.assert_allclose(opened.next_logits(), logits, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("n_batch", [2, 3, 19, 20])
def test_the_batch_size_does_not_show(
    tiny_llama_path: Path, numpy_llama: NumpyLlama, n_batch: int
) -> None:
    with open_engine(tiny_llama_path, n_batch=n_batch, n_candidates=1) as opened:
        opened.prefill(PROMPT)
        opened.engine.append(OTHER)
        assert_proposes_like(opened, numpy_llama, PROMPT + OTHER)


def test_the_smallest_context_takes_the_most_candidates_and_all_the_tokens_that_it_has_room_for(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    """llama.cpp cuts n_batch to n_ctx 64, then rounds that up to 256 cells: both can abort it."""
    prompt = random_prompt(np.random.default_rng(7), 190)
    with open_engine(tiny_llama_path, n_ctx=64, n_candidates=64) as opened:
        assert opened.context.n_ctx == 256
        opened.prefill(prompt)
        assert_proposes_like(opened, numpy_llama, prompt)
        states = opened.engine.evaluate_candidates(range(20, 84))
        assert len(states) == 64
        opened.engine.accept(21)
        assert_proposes_like(opened, numpy_llama, [*prompt, 21])


def test_more_tokens_than_a_small_context_has_cells_are_refused(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path, n_ctx=100) as opened:
        opened.prefill(PROMPT)
        with pytest.raises(PromptTooLongError, match="256 tokens is full"):
            opened.engine.append(random_prompt(np.random.default_rng(7), 300))


def test_a_batch_too_small_for_all_candidates_is_refused(tiny_llama_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="batch of 8 tokens cannot hold"),
        open_engine(tiny_llama_path, n_batch=8, n_candidates=8),
    ):
        pass


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_and_changes_nothing(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    room = 256 - 8 - 1
    prompt = random_prompt(np.random.default_rng(8), room + 1)
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        with pytest.raises(PromptTooLongError, match="has 248 tokens"):
            opened.prefill(prompt)
        assert opened.prefill(PROMPT).n_reused_tokens == 19
        assert_proposes_like(opened, numpy_llama, PROMPT)
        assert opened.prefill(prompt[:-1]).n_prompt_tokens == room
        assert opened.engine.evaluate_candidates(range(20, 28)).shape == (8, 0)


def test_an_empty_prompt_is_refused(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path) as opened:
        for items in ([], [TokenRun(())]):
            with pytest.raises(EngineError, match="must end with a text token"):
                opened.prefill(items)


def test_a_cancelled_prompt_is_picked_up_where_it_was_left(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    answers = iter([False, True])
    with open_engine(tiny_llama_path, n_batch=6, n_candidates=1) as opened:
        opened.prefill([9])
        assert opened.sampler is not None
        with pytest.raises(PrefillCancelledError):
            opened.engine.prefill(
                [TokenRun(tuple(PROMPT))], opened.sampler, cancelled=lambda: next(answers)
            )
        assert opened.prefill(PROMPT).n_reused_tokens == 12
        assert_proposes_like(opened, numpy_llama, PROMPT)
