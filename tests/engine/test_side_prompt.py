"""A prompt on a side sequence: its state is a main prompt's, and nothing of it stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.errors import PromptTooLongError
from tests.engine.open_engine import F32_TOLERANCE, open_engine, random_prompt, random_vector
from tests.tiny_models import write_tiny_llama

LAYERS = (1, 2)
PROMPT = random_prompt(np.random.default_rng(1), 40)
ASIDE = random_prompt(np.random.default_rng(2), 23)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.mark.parametrize("route_name", ["layer_input", "eval_callback"])
@pytest.mark.parametrize("n_batch", [512, 16])
def test_its_state_is_that_of_the_same_prompt_on_the_main_sequence(
    tiny: Path, route_name, n_batch: int
):
    with open_engine(tiny, layers=LAYERS, route_name=route_name, n_batch=n_batch) as opened:
        expected = opened.prefill(ASIDE).last_state
        opened.prefill(PROMPT, control_vector=random_vector())
        state = opened.engine.side_prompt_states([ASIDE])[0]
    np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)


def test_the_next_prompt_reuses_the_main_sequence_and_is_answered_by_the_same_bits(tiny: Path):
    logits = []
    for looks_aside in (True, False):
        with open_engine(tiny, layers=LAYERS) as opened:
            opened.prefill(PROMPT)
            opened.feed(ASIDE[:3])
            if looks_aside:
                opened.engine.side_prompt_states([ASIDE])[0]
            stats = opened.prefill([*PROMPT, *ASIDE[:6]])
            assert stats.n_reused_tokens == len(PROMPT) + 3
            logits.append(opened.next_logits())
            opened.feed(ASIDE[6:9])
            logits.append(opened.next_logits())
    np.testing.assert_array_equal(logits[0], logits[2])
    np.testing.assert_array_equal(logits[1], logits[3])


def test_the_main_sequence_makes_way_where_there_is_no_room(tiny: Path):
    long = random_prompt(np.random.default_rng(3), 200)
    with open_engine(tiny, layers=LAYERS) as opened:
        expected = opened.prefill(long).last_state
        opened.prefill([*PROMPT, *long[:80]])
        state = opened.engine.side_prompt_states([long])[0]
        np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)
        assert opened.prefill(long).n_reused_tokens == 0
        with pytest.raises(PromptTooLongError, match="full"):
            opened.engine.side_prompt_states([random_prompt(np.random.default_rng(4), 300)])
        assert opened.prefill(long).n_prompt_tokens == len(long)


def test_it_can_be_cancelled(tiny: Path):
    with open_engine(tiny, layers=LAYERS) as opened, pytest.raises(PrefillCancelledError):
        opened.engine.side_prompt_states([ASIDE], cancelled=lambda: True)


@pytest.mark.parametrize("route_name", ["layer_input", "eval_callback"])
def test_many_at_once_have_the_states_that_each_has_alone(tiny: Path, route_name):
    rng = np.random.default_rng(5)
    # Some begin as the main prompt does: those cells are shared.
    sides = [[*PROMPT[:n], *random_prompt(rng, 3 + n)] for n in (0, 1, 7, 20, 39)] * 3
    with open_engine(tiny, layers=LAYERS, route_name=route_name) as opened:
        alone = [opened.prefill(side).last_state for side in sides]
        opened.prefill(PROMPT, control_vector=random_vector())
        states = opened.engine.side_prompt_states(sides)
    np.testing.assert_allclose(states, alone, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("vector", [None, random_vector()], ids=["plain", "steered"])
def test_after_a_look_aside_the_answer_goes_on_by_the_same_bits(tiny: Path, vector):
    logits = []
    for looks_aside in (True, False):
        with open_engine(tiny, layers=LAYERS) as opened:
            opened.prefill(PROMPT, control_vector=vector)
            if looks_aside:
                opened.engine.side_prompt_states([ASIDE, PROMPT[:9], ASIDE[:5]])
            logits.append(opened.next_logits())
            opened.feed(ASIDE[:3])
            logits.append(opened.next_logits())
    np.testing.assert_array_equal(logits[0], logits[2])
    np.testing.assert_array_equal(logits[1], logits[3])


@pytest.mark.parametrize("route_name", ["layer_input", "eval_callback"])
@pytest.mark.parametrize("n_batch", [512, 32])
def test_marks_have_the_states_that_prompts_of_that_length_end_with(
    tiny: Path, route_name, n_batch: int
):
    marks = (0, 5, 17, 38)
    with open_engine(tiny, layers=LAYERS, route_name=route_name, n_batch=n_batch) as opened:
        alone = {at: opened.prefill(PROMPT[: at + 1]).last_state for at in marks}
        opened.engine.side_prompt_states([ASIDE])
        opened.prefill(ASIDE)
        stats = opened.prefill(PROMPT, marks=marks)
        expected = opened.prefill([*ASIDE, *PROMPT]).last_state
    assert set(stats.mark_states) == set(marks)
    for at in marks:
        np.testing.assert_allclose(stats.mark_states[at], alone[at], rtol=0, atol=F32_TOLERANCE)
    assert not np.allclose(expected, stats.last_state)
