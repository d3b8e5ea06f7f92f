"""Lazy and eager re-ranking on the real engine: the same answers, up to llama.cpp's own rounding.

A token's state comes from a batch of one in lazy re-ranking and of all candidates in eager, and
its cell lies elsewhere in the cache, so that sums are taken in another order. What that does to
the guarded value log p − λ·max(0, s − τ) is measured on the tokens that both emitted; two
candidates nearer to each other than this may change places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from safesteer_edge.guard.decoding import ActiveGuard, DecodingLimits, GuardedAnswer
from safesteer_edge.guard.events import Candidate, Step
from safesteer_edge.guard.policy import GuardPolicy, RerankName
from safesteer_edge.guard.sampling import SamplingSettings
from tests.engine.open_engine import (
    N_EMBD,
    Float32Array,
    OpenEngine,
    open_engine,
    random_prompt,
)
from tests.tiny_models import write_tiny_llama
from tests.tiny_models.random_weights import Quantization

LAYERS = (1, 2)
TOP_K = 8
N_TOKENS = 14
# Refusals are out of reach, and λ stays the same: re-ranking alone is tested.
POLICY = GuardPolicy(
    strength=6.0,
    threshold=0.5,
    hard_threshold=1.0,
    hard_patience=1024,
    risk_limit=1.0,
    risk_decay=0.9,
    risk_min_steps=1024,
    risk_gain=0.0,
    conversation_carry=0.0,
)


class LinearProbe:
    """Half of the tiny model's states score above the threshold: it intervenes at many steps."""

    n_features = len(LAYERS) * N_EMBD

    def __init__(self) -> None:
        weights = np.random.default_rng(0).standard_normal(self.n_features)
        self._weights = weights / np.linalg.norm(weights)

    def score(self, hidden: Float32Array) -> Float32Array:
        return (1 / (1 + np.exp(-(hidden @ self._weights)))).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, its steps, and how often the guard stepped in."""

    token_ids: tuple[int, ...]
    steps: list[Step]
    n_interventions: int
    n_evaluated: int


def answer(
    opened: OpenEngine, prompt: list[int], rerank: RerankName, sampling: SamplingSettings
) -> Answered:
    opened.prefill(prompt, sampling=sampling)
    guarded = GuardedAnswer(
        opened.engine,
        ActiveGuard("steer", rerank, POLICY, LinearProbe(), refusal_text="no"),
        DecodingLimits(N_TOKENS, n_spare=TOP_K + 1),
        tokenize_plain=opened.model.tokenize_plain,
        rng=np.random.default_rng(sampling.seed),
    )
    steps = [event for event in guarded.events() if isinstance(event, Step)]
    return Answered(
        guarded.token_ids, steps, guarded.n_interventions, guarded.n_evaluated_candidates
    )


def value(item: Step | Candidate) -> float:
    """The guarded value log p − λ·max(0, s − τ)."""
    assert item.score is not None
    return item.logprob - POLICY.strength * max(0.0, item.score - POLICY.threshold)


@dataclass(slots=True)
class Comparison:
    """noise: the largest |Δ value| of a token that both emitted after the same ones.

    gaps: at each first difference, how far apart the two best candidates were.
    """

    noise: float = 0.0
    n_same: int = 0
    n_interventions: int = 0
    n_evaluated_lazily: int = 0
    n_evaluated_eagerly: int = 0
    gaps: list[float] | None = None

    def add_inplace(self, lazy: Answered, eager: Answered) -> None:
        self.n_interventions += lazy.n_interventions
        self.n_evaluated_lazily += lazy.n_evaluated
        self.n_evaluated_eagerly += eager.n_evaluated
        self.gaps = self.gaps or []
        for lazy_step, eager_step in zip(lazy.steps, eager.steps, strict=False):
            if lazy_step.token_id != eager_step.token_id:
                second, best = sorted(value(item) for item in eager_step.candidates)[-2:]
                self.gaps.append(best - second)
                return
            self.noise = max(self.noise, abs(value(lazy_step) - value(eager_step)))
        assert lazy.token_ids == eager.token_ids
        self.n_same += 1


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
