"""Lazy and eager re-ranking on the real engine: the same answers, up to llama.cpp's rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from safesteer_edge.guard.policy import RerankName, SamplingSettings
from tests.engine.open_engine import open_engine, random_prompt
from tests.engine.reranked_answers import LAYERS, TOP_K, Comparison, answer
from tests.tiny_models import write_tiny_llama
from tests.tiny_models.random_weights import Quantization


@pytest.mark.parametrize(
    ("quantization", "kv_type", "largest_noise"),
    [
        ("F32", lib.GGML_TYPE_F32, 1e-4),  # seen: 1.5e-5
        ("F32", lib.GGML_TYPE_F16, 0.05),  # seen: 0.006
        ("Q4_1", lib.GGML_TYPE_F16, 0.05),  # what people run; seen: 1.4e-6
    ],
)
def test_greedy_answers_are_the_same_where_rounding_does_not_decide(
    tmp_path: Path, quantization: Quantization, kv_type: int, largest_noise: float
) -> None:
    path = write_tiny_llama(tmp_path / "model.gguf", quantization=quantization)
    rng, compared = np.random.default_rng(0), Comparison()
    greedy = SamplingSettings(temperature=0, top_k=TOP_K)
    n_prompts = 50
    with open_engine(path, layers=LAYERS, n_candidates=TOP_K, kv_type=kv_type) as opened:
        for _ in range(n_prompts):
            prompt = random_prompt(rng, 8)
            compared.add_inplace(
                answer(opened, prompt, "lazy", greedy), answer(opened, prompt, "eager", greedy)
            )
    assert compared.gaps is not None
    assert compared.noise < largest_noise
    assert max(compared.gaps, default=0.0) <= 2 * compared.noise
    assert compared.n_same >= n_prompts - 3
    assert compared.n_interventions > 100
    assert compared.n_evaluated_lazily < 0.4 * compared.n_evaluated_eagerly


def test_one_seed_gives_one_answer_whether_lazy_or_eager(tiny_llama_path: Path) -> None:
    rng, compared = np.random.default_rng(1), Comparison()
    n_prompts = 30
    texts: set[tuple[int, ...]] = set()
    with open_engine(tiny_llama_path, layers=LAYERS, n_candidates=TOP_K) as opened:
        for seed in range(n_prompts):
            prompt = random_prompt(rng, 8)
            sampling = SamplingSettings(temperature=1, top_k=TOP_K, top_p=1, min_p=0, seed=seed)
            lazy = answer(opened, prompt, "lazy", sampling)
            compared.add_inplace(lazy, answer(opened, prompt, "eager", sampling))
            texts.add(lazy.token_ids)
    # A random number that falls into the noise (1e-5) changes an answer once in some 200 runs.
    assert compared.n_same >= n_prompts - 1
    assert compared.noise < 1e-4
    assert compared.n_interventions > 50
    assert len(texts) == n_prompts


@pytest.mark.parametrize("rerank", ["lazy", "eager"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_given_twice_is_the_same_to_the_bit(
    tiny_llama_path: Path, rerank: RerankName, temperature: float
) -> None:
    """Also with another answer in between, which leaves its traces in the cache's free cells."""
    sampling = SamplingSettings(temperature=temperature, top_k=TOP_K, seed=3)
    prompt, other = (random_prompt(np.random.default_rng(seed), 8) for seed in (2, 3))
    scores: list[NDArray[np.float64]] = []
    with open_engine(tiny_llama_path, layers=LAYERS, n_candidates=TOP_K) as opened:
        for asked in (prompt, other, prompt):
            given = answer(opened, asked, rerank, sampling)
            scores.append(np.array([(step.token_id, step.score) for step in given.steps]))
    np.testing.assert_array_equal(scores[0], scores[2])
    assert (scores[0] != scores[1]).any()
