"""Openings evaluated as blocks, and answers rewound: as if what went had never been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.errors import EngineError
from safesteer_edge.guard.policy import SamplingSettings
from tests.engine.open_engine import F32_TOLERANCE, OpenEngine, open_engine

PROMPT = [5, 6, 7, 8, 9]
BLOCKS = [(20, 21, 22), (20, 30), (40, 41, 42, 43)]
LAYERS = (1, 2)


@pytest.fixture(params=["tiny_llama_path", "tiny_mamba_path"])
def opened(request: pytest.FixtureRequest):
    """A transformer's KV cache, then a recurrent state, which cannot be rolled back."""
    path: Path = request.getfixturevalue(request.param)
    with open_engine(path, layers=LAYERS, n_candidates=12) as engine:
        yield engine


def assert_close(found: Any, expected: Any) -> None:
    """Up to rounding, by the largest value: a recurrent state reaches thousands."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, atol=F32_TOLERANCE * scale)


def say(opened: OpenEngine, *token_ids: int) -> list[np.ndarray]:
    states: list[np.ndarray] = []
    for token_id in token_ids:
        opened.engine.propose()
        states.append(opened.engine.evaluate(token_id))
        opened.engine.accept(token_id)
    return states


def test_a_block_gives_the_states_and_logits_of_its_tokens_one_by_one(opened: OpenEngine):
    for block in BLOCKS:
        opened.prefill(PROMPT)
        states = np.array(say(opened, *block))
        logits = opened.next_logits()
        opened.prefill(PROMPT)
        opened.engine.propose()
        opened.engine.evaluate_candidates([20, 50])  # tokens and blocks at one step
        found = opened.engine.evaluate_blocks(BLOCKS)
        opened.engine.accept_block(block)
        assert_close(found[BLOCKS.index(block)], states)
        assert_close(opened.next_logits(), logits)
        after = say(opened, 60, 61)
        opened.prefill(PROMPT)
        assert_close(say(opened, *block, 60, 61)[-2:], after)


@pytest.mark.parametrize("n_kept", [0, 1, 3])
@pytest.mark.parametrize("repeat_penalty", [1.0, 1.5])
def test_after_a_rewind_all_goes_on_as_if_the_tokens_had_never_been(
    opened: OpenEngine, n_kept: int, repeat_penalty: float
):
    sampling = SamplingSettings(temperature=0, top_k=8, repeat_penalty=repeat_penalty)
    kept = [11, 12, 13][:n_kept]
    opened.prefill(PROMPT, sampling=sampling)
    say(opened, *kept)
    proposal, logits = opened.engine.propose(), opened.next_logits()
    opened.prefill(PROMPT, sampling=sampling)
    say(opened, *kept, 70, 71, 72)
    opened.engine.propose()
    opened.engine.evaluate(73)  # pending, and never accepted
    opened.engine.rewind(3)
    again = opened.engine.propose()
    np.testing.assert_array_equal(again.token_ids, proposal.token_ids)
    assert_close(again.log_probs, proposal.log_probs)
    np.testing.assert_array_equal(opened.next_logits(), logits)  # the same call: to the bit


def test_the_prompt_is_not_rewound(opened: OpenEngine):
    opened.prefill(PROMPT)
    say(opened, 11)
    with pytest.raises(EngineError, match="shorter"):
        opened.engine.rewind(2)


def test_blocks_count_among_the_candidates_that_the_context_was_made_for(opened: OpenEngine):
    opened.prefill(PROMPT)
    opened.engine.propose()
    opened.engine.evaluate_candidates([*range(100, 110)])
    with pytest.raises(EngineError, match="12"):
        opened.engine.evaluate_blocks(BLOCKS)
