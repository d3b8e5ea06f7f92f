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
        state = opened.engine.side_prompt_state(ASIDE)
    np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)


def test_the_next_prompt_reuses_the_main_sequence_and_is_answered_by_the_same_bits(tiny: Path):
    logits = []
    for looks_aside in (True, False):
        with open_engine(tiny, layers=LAYERS) as opened:
            opened.prefill(PROMPT)
            opened.feed(ASIDE[:3])
            if looks_aside:
                opened.engine.side_prompt_state(ASIDE)
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
        state = opened.engine.side_prompt_state(long)
        np.testing.assert_allclose(state, expected, rtol=0, atol=F32_TOLERANCE)
        assert opened.prefill(long).n_reused_tokens == 0
        with pytest.raises(PromptTooLongError, match="full"):
            opened.engine.side_prompt_state(random_prompt(np.random.default_rng(4), 300))
        assert opened.prefill(long).n_prompt_tokens == len(long)


def test_it_can_be_cancelled(tiny: Path):
    with open_engine(tiny, layers=LAYERS) as opened, pytest.raises(PrefillCancelledError):
        opened.engine.side_prompt_state(ASIDE, cancelled=lambda: True)
