"""The control vector acts from the last prompt token on, where it was put, until it is off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.errors import EngineError
from tests.engine.open_engine import (
    F32_TOLERANCE,
    N_EMBD,
    N_LAYER,
    Float32Array,
    open_engine,
    random_prompt,
    random_vector,
)
from tests.numpy_llama import NumpyLlama

PROMPT = random_prompt(np.random.default_rng(9), 15)
ANSWER = [50, 60, 70]


@pytest.fixture(scope="module")
def numpy_llama(tiny_llama_path: Path) -> NumpyLlama:
    """The tiny llama in NumPy."""
    return NumpyLlama(tiny_llama_path)


def assert_close(actual: Float32Array, expected: Float32Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=F32_TOLERANCE)


def steered(model: NumpyLlama, vector: Float32Array, answer: list[int]) -> Float32Array:
    """NumPy's logits after the answer, steered from the last prompt token on."""
    forward = model.forward(PROMPT + answer, vector, steered_from=len(PROMPT) - 1)
    return forward.logits[-1]


def test_the_last_prompt_token_and_the_answer_are_steered_and_nothing_before(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    vector = random_vector()
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT, control_vector=vector)
        at_prompt = opened.next_logits()
        opened.feed(ANSWER)
        at_answer = opened.next_logits()
    assert_close(at_prompt, steered(numpy_llama, vector, []))
    assert_close(at_answer, steered(numpy_llama, vector, ANSWER))
    for other in (None, vector):  # steering nothing, or all of the prompt, is far from it
        assert np.abs(at_prompt - numpy_llama.forward(PROMPT, other).logits[-1]).max() > 0.5


def test_candidates_are_steered(tiny_llama_path: Path, numpy_llama: NumpyLlama) -> None:
    vector = random_vector()
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT, control_vector=vector)
        opened.engine.evaluate(50)
        opened.engine.evaluate_candidates([60, 70])
        opened.engine.accept(70)
        assert_close(opened.next_logits(), steered(numpy_llama, vector, [70]))


def test_the_next_prefill_switches_it_off(tiny_llama_path: Path) -> None:
    """And to the bit: what is left is a context that never was steered."""
    other = random_prompt(np.random.default_rng(10), 15)
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT, control_vector=random_vector())
        opened.feed(ANSWER)
        opened.prefill(other)
        at_prompt = opened.next_logits()
        opened.feed(ANSWER)
        at_answer = opened.next_logits()
    with open_engine(tiny_llama_path) as fresh:
        fresh.prefill(other)
        np.testing.assert_array_equal(at_prompt, fresh.next_logits())
        fresh.feed(ANSWER)
        np.testing.assert_array_equal(at_answer, fresh.next_logits())


def test_the_same_prompt_can_be_asked_steered_plain_and_steered_again(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    vector, other = random_vector(1), random_vector(2)
    with open_engine(tiny_llama_path) as opened:
        for control_vector in (vector, None, other, vector, None):
            opened.prefill(PROMPT, control_vector=control_vector)
            opened.feed(ANSWER)
            expected = (
                numpy_llama.forward(PROMPT + ANSWER).logits[-1]
                if control_vector is None
                else steered(numpy_llama, control_vector, ANSWER)
            )
            assert_close(opened.next_logits(), expected)


def test_a_vector_on_few_blocks_leaves_nothing_of_one_on_all(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    """llama.cpp keeps the upper layers of an older vector when it is given a shorter buffer."""
    on_block_1 = random_vector(2)
    on_block_1[2:] = 0
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT, control_vector=random_vector(1))
        opened.prefill(PROMPT, control_vector=on_block_1)
        assert_close(opened.next_logits(), steered(numpy_llama, on_block_1, []))


def test_a_vector_of_zeros_changes_nothing(tiny_llama_path: Path) -> None:
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        plain = opened.next_logits()
        zeros = np.zeros((N_LAYER, N_EMBD), dtype=np.float32)
        opened.prefill(PROMPT, control_vector=zeros)
        np.testing.assert_array_equal(opened.next_logits(), plain)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_direction_is_added_to_the_output_of_its_own_block(
    tiny_llama_path: Path, block: int
) -> None:
    vector = np.zeros((N_LAYER, N_EMBD), dtype=np.float32)
    vector[block] = random_vector()[block]
    layers = tuple(range(N_LAYER))
    with open_engine(tiny_llama_path, layers=layers) as opened:
        plain = opened.prefill(PROMPT).last_state.reshape(N_LAYER, N_EMBD)
        moved = opened.prefill(PROMPT, control_vector=vector).last_state.reshape(N_LAYER, N_EMBD)
    np.testing.assert_array_equal(moved[:block], plain[:block])
    assert_close(moved[block] - plain[block], vector[block])
    for later in range(block + 1, N_LAYER):
        assert np.abs(moved[later] - plain[later]).max() > 0.1


def test_an_answer_in_the_cache_stays_as_it_was_steered(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    sequence = [*PROMPT, *ANSWER, 80, 90]
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT, control_vector=random_vector())
        opened.feed(ANSWER)
        assert opened.prefill(sequence).n_reused_tokens == len(PROMPT) + len(ANSWER)
        difference = np.abs(opened.next_logits() - numpy_llama.forward(sequence).logits[-1])
        assert difference.max() > 0.1


@pytest.mark.parametrize("shape", [(N_LAYER, N_EMBD + 1), (N_LAYER - 1, N_EMBD), (N_EMBD,)])
def test_a_vector_of_another_shape_is_refused(
    tiny_llama_path: Path, shape: tuple[int, ...]
) -> None:
    with open_engine(tiny_llama_path) as opened, pytest.raises(EngineError, match="shape"):
        opened.prefill(PROMPT, control_vector=np.zeros(shape, dtype=np.float32))


def test_a_vector_on_block_0_which_llama_cpp_would_ignore_is_refused(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    vector = random_vector()
    vector[0, 5] = 1
    with open_engine(tiny_llama_path) as opened:
        with pytest.raises(EngineError, match="zero row for block 0"):
            opened.prefill(PROMPT, control_vector=vector)
        opened.prefill(PROMPT)
        assert_close(opened.next_logits(), numpy_llama.forward(PROMPT).logits[-1])


def test_a_whole_prompt_is_steered_where_that_is_asked_for(
    tiny_llama_path: Path, numpy_llama: NumpyLlama
) -> None:
    """And what was evaluated otherwise is not reused: the cache has the vector's marks."""
    vector = random_vector()
    expected = numpy_llama.forward([*PROMPT, *ANSWER], vector).logits[-1]
    with open_engine(tiny_llama_path) as opened:
        opened.prefill(PROMPT)
        for _ in range(2):
            opened.prefill(PROMPT, control_vector=vector, steers_prompt=True)
            opened.feed(ANSWER)
            assert_close(opened.next_logits(), expected)
        again = opened.prefill([*PROMPT, 80], control_vector=vector, steers_prompt=True)
        assert again.n_reused_tokens == len(PROMPT)
        assert opened.prefill(PROMPT, control_vector=2 * vector, steers_prompt=True) is not None
        assert_close(opened.next_logits(), numpy_llama.forward(PROMPT, 2 * vector).logits[-1])
        assert opened.prefill(PROMPT).n_reused_tokens == 0
        assert_close(opened.next_logits(), numpy_llama.forward(PROMPT).logits[-1])
