"""A prompt on a side sequence: its state is a main prompt's, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.engine.prompt_items import TextPrompt
from safesteer_edge.errors import PromptTooLongError
from tests.engine.open_engine import (
    F32_TOLERANCE,
    Float32Array,
    OpenEngine,
    open_engine,
    random_prompt,
    random_vector,
)
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
        state = opened.engine.side_prompt_states([TextPrompt(ASIDE)])[0, 0]
    np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)


def test_the_next_prompt_reuses_the_main_sequence_and_is_answered_by_the_same_bits(tiny: Path):
    logits = []
    for looks_aside in (True, False):
        with open_engine(tiny, layers=LAYERS) as opened:
            opened.prefill(PROMPT)
            opened.feed(ASIDE[:3])
            if looks_aside:
                opened.engine.side_prompt_states([TextPrompt(ASIDE)])[0, 0]
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
        state = opened.engine.side_prompt_states([TextPrompt(long)])[0, 0]
        np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)
        assert opened.prefill(long).n_reused_tokens == 0
        too_long = random_prompt(np.random.default_rng(4), 300)
        with pytest.raises(PromptTooLongError, match="full"):
            opened.engine.side_prompt_states([TextPrompt(too_long)])
        assert opened.prefill(long).n_prompt_tokens == len(long)


def test_it_can_be_cancelled(tiny: Path):
    with open_engine(tiny, layers=LAYERS) as opened, pytest.raises(PrefillCancelledError):
        opened.engine.side_prompt_states([TextPrompt(ASIDE)], cancelled=lambda: True)


@pytest.mark.parametrize("route_name", ["layer_input", "eval_callback"])
@pytest.mark.parametrize("n_batch", [512, 32])
def test_many_at_once_have_the_states_that_each_has_alone(tiny: Path, route_name, n_batch: int):
    rng = np.random.default_rng(5)
    # Some begin as the main prompt does: those cells are shared, but for the message's.
    sides = [[*PROMPT[:n], *random_prompt(rng, 3 + n)] for n in (0, 1, 7, 20, 39)] * 3
    prompts = [
        TextPrompt(side, range(at % 4, min(at, len(side) - 1))) for at, side in enumerate(sides)
    ]
    with open_engine(tiny, layers=LAYERS, route_name=route_name, n_batch=n_batch) as opened:
        alone = [opened.prefill(side).last_state for side in sides]
        means = [mean_of_prompts(opened, each.token_ids, each.message) for each in prompts]
        opened.prefill(PROMPT, control_vector=random_vector())
        states = opened.engine.side_prompt_states(prompts)
    np.testing.assert_allclose(states[:, 0], alone, rtol=0, atol=F32_TOLERANCE)
    np.testing.assert_allclose(states[:, 1], means, rtol=0, atol=F32_TOLERANCE)


@pytest.mark.parametrize("vector", [None, random_vector()], ids=["plain", "steered"])
def test_after_a_look_aside_the_answer_goes_on_by_the_same_bits(tiny: Path, vector):
    logits = []
    for looks_aside in (True, False):
        with open_engine(tiny, layers=LAYERS) as opened:
            opened.prefill(PROMPT, control_vector=vector)
            if looks_aside:
                sides = [ASIDE, PROMPT[:9], ASIDE[:5]]
                opened.engine.side_prompt_states(list(map(TextPrompt, sides)))
            logits.append(opened.next_logits())
            opened.feed(ASIDE[:3])
            logits.append(opened.next_logits())
    np.testing.assert_array_equal(logits[0], logits[2])
    np.testing.assert_array_equal(logits[1], logits[3])


@pytest.mark.parametrize("route_name", ["layer_input", "eval_callback"])
@pytest.mark.parametrize("n_batch", [512, 32])
def test_spans_have_the_mean_of_the_states_that_prompts_of_each_length_end_with(
    tiny: Path, route_name, n_batch: int
):
    spans = (range(1), range(5, 38), range(17, 39), range(12, 12))
    with open_engine(tiny, layers=LAYERS, route_name=route_name, n_batch=n_batch) as opened:
        expected = [mean_of_prompts(opened, PROMPT, span) for span in spans]
        opened.prefill(PROMPT)
        stats = opened.prefill(PROMPT, spans=spans[1:])
        assert stats.n_reused_tokens == 5  # what a span covers is read anew
        first = opened.prefill(PROMPT, spans=spans[:1])
    found = np.concatenate([first.span_means, stats.span_means])
    np.testing.assert_allclose(found, expected, rtol=0, atol=F32_TOLERANCE)


def mean_of_prompts(opened: OpenEngine, prompt: Sequence[int], span: range) -> Float32Array:
    """The mean of the states at these places, each read as a prompt's last; none: at its own."""
    states = [opened.prefill(prompt[: at + 1]).last_state for at in span]
    return np.mean(states or [opened.prefill(prompt).last_state], axis=0)
