"""llama.cpp's sampler chain against the same filters in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import EngineError, GuardError
from safesteer_edge.guard.policy import MAX_TOP_K, SamplingSettings
from safesteer_edge.guard.protocols import Proposal
from tests.engine.open_engine import N_VOCAB, Float32Array, open_engine

# llama.cpp's filters compare float32 sums, and float64 ones do here: nearer than this to a limit,
# either is right.
BOUNDARY = 1e-5


def random_logits(seed: int) -> Float32Array:
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal(N_VOCAB)).astype(np.float32)


def propose(
    settings: SamplingSettings, logits: Float32Array, accepted: Sequence[int] = ()
) -> Proposal:
    chain = SamplerChain(settings, n_vocab=len(logits))
    try:
        for token_id in accepted:
            chain.accept(token_id)
        return chain.propose(logits)
    finally:
        chain.close()


def draws(settings: SamplingSettings, logits: Float32Array, n: int) -> NDArray[np.int64]:
    """Token ids that one chain draws, one after another."""
    chain = SamplerChain(settings, n_vocab=len(logits))
    try:
        proposals = [chain.propose(logits) for _ in range(n)]
    finally:
        chain.close()
    return np.array([int(p.token_ids[p.drawn]) for p in proposals])


def penalised(
    logits: NDArray[np.float64], settings: SamplingSettings, accepted: Sequence[int]
) -> NDArray[np.float64]:
    """Repeat, frequency and presence penalties of the last accepted tokens (llama-sampler.cpp)."""
    logits = logits.copy()
    recent = accepted[-settings.repeat_last_n :] if settings.repeat_last_n else ()
    for token_id in set(recent):
        value = logits[token_id]
        factor = settings.repeat_penalty
        value = value * factor if value <= 0 else value / factor
        n_times = list(recent).count(token_id)
        logits[token_id] = value - n_times * settings.frequency_penalty - settings.presence_penalty
    return logits


def numpy_chain(
    logits: Float32Array, settings: SamplingSettings, accepted: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """What the chain must leave: token ids and log-probabilities, descending.

    The third value is how near a token came to being judged the other way by a filter.
    """
    values = penalised(logits.astype(np.float64), settings, accepted)
    token_ids = np.argsort(-values, kind="stable")[: settings.top_k]
    nearest = float(-np.diff(-np.sort(-values)[: settings.top_k + 1]).min())
    values = values[token_ids]
    if settings.temperature > 0:
        if settings.top_p < 1:
            sums = np.cumsum(np.exp(values - values.max())) / np.exp(values - values.max()).sum()
            nearest = min(nearest, float(np.abs(sums - settings.top_p).min()))
            values = values[: int(np.searchsorted(sums, settings.top_p)) + 1]
        if settings.min_p > 0:
            margin = values - (values[0] + np.log(settings.min_p))
            nearest = min(nearest, float(np.abs(margin[1:]).min(initial=1.0)))
            values = values[(margin >= 0) | (np.arange(len(values)) == 0)]
        values = values / settings.temperature
    log_probs = values - values.max()
    log_probs -= np.log(np.exp(log_probs).sum())
    return token_ids[: len(values)], log_probs, nearest


ACCEPTED = st.lists(st.integers(0, N_VOCAB - 1) | st.integers(0, 5), max_size=20)
SETTINGS = st.builds(
    SamplingSettings,
    temperature=st.just(0.0) | st.floats(0.05, 5),
    top_k=st.integers(1, MAX_TOP_K),
    top_p=st.just(1.0) | st.floats(0, 1),
    min_p=st.just(0.0) | st.floats(1e-6, 1),
    repeat_penalty=st.just(1.0) | st.floats(0.5, 2),
    repeat_last_n=st.integers(0, 25),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    seed=st.integers(0, 2**32 - 2),
)


@given(seed=st.integers(0, 10_000), settings=SETTINGS, accepted=ACCEPTED)
def test_the_chain_leaves_what_numpy_leaves(
    seed: int, settings: SamplingSettings, accepted: list[int]
) -> None:
    logits = random_logits(seed)
    token_ids, log_probs, nearest = numpy_chain(logits, settings, accepted)
    assume(nearest > BOUNDARY)
    proposal = propose(settings, logits, accepted)
    np.testing.assert_array_equal(proposal.token_ids, token_ids)
    np.testing.assert_allclose(proposal.log_probs, log_probs, rtol=0, atol=1e-4)


@given(seed=st.integers(0, 10_000), settings=SETTINGS, accepted=ACCEPTED)
def test_a_proposal_is_a_descending_distribution(
    seed: int, settings: SamplingSettings, accepted: list[int]
) -> None:
    logits = random_logits(seed)
    before = logits.copy()
    proposal = propose(settings, logits, accepted)
    assert 1 <= len(proposal.token_ids) == len(proposal.log_probs) <= settings.top_k
    assert len(set(proposal.token_ids.tolist())) == len(proposal.token_ids)
    assert np.exp(proposal.log_probs).sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(proposal.log_probs) <= 0).all()
    assert 0 <= proposal.drawn < len(proposal.token_ids)
    assert proposal.greedy == (settings.temperature == 0)
    if proposal.greedy:
        assert proposal.drawn == 0
    assert (proposal.token_ids.dtype, proposal.log_probs.dtype) == (np.int32, np.float64)
    np.testing.assert_array_equal(logits, before)


def test_a_seed_decides_all_draws() -> None:
    logits = random_logits(0)
    settings = SamplingSettings(temperature=1.5, top_k=40, top_p=1, min_p=0, seed=2**32 - 2)
    first = draws(settings, logits, 100)
    np.testing.assert_array_equal(draws(settings, logits, 100), first)
    other = SamplingSettings(temperature=1.5, top_k=40, top_p=1, min_p=0, seed=12)
    assert (draws(other, logits, 100) != first).any()
    assert len(set(first.tolist())) > 5


def test_candidates_are_drawn_as_often_as_their_probability_says() -> None:
    logits, n_draws = random_logits(1), 4000
    settings = SamplingSettings(temperature=1.2, top_k=12, top_p=0.97, min_p=0.01, seed=1)
    proposal = propose(settings, logits)
    drawn = draws(settings, logits, n_draws)
    probabilities = np.exp(proposal.log_probs)
    counts = np.array([(drawn == token_id).sum() for token_id in proposal.token_ids])
    assert counts.sum() == n_draws
    deviation = np.sqrt(n_draws * probabilities * (1 - probabilities))
    assert (np.abs(counts - n_draws * probabilities) < 4.5 * deviation).all()


def test_a_chain_forgets_the_step_before_and_remembers_what_was_accepted() -> None:
    settings = SamplingSettings(temperature=0, top_k=8, repeat_penalty=1.5, repeat_last_n=2)
    chain = SamplerChain(settings, n_vocab=N_VOCAB)
    try:
        accepted: list[int] = []
        for seed in range(20):
            logits = random_logits(seed % 3)
            proposal = chain.propose(logits)
            token_ids, log_probs, _ = numpy_chain(logits, settings, accepted)
            np.testing.assert_array_equal(proposal.token_ids, token_ids)
            np.testing.assert_allclose(proposal.log_probs, log_probs, rtol=0, atol=1e-4)
            accepted.append(int(proposal.token_ids[0]))
            chain.accept(accepted[-1])
    finally:
        chain.close()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["best", "one", "all"])
def test_logits_that_are_no_numbers_are_refused(temperature: float, bad: float, where: str) -> None:
    logits = random_logits(0)
    places = {"best": logits.argmax(), "one": logits.argmin(), "all": slice(None)}
    logits[places[where]] = bad
    with pytest.raises(GuardError, match="non-finite"):
        propose(SamplingSettings(temperature=temperature, top_k=4), logits)


def test_tokens_that_a_model_rules_out_are_no_candidates() -> None:
    logits = random_logits(0)
    best = np.argsort(-logits)[:2]
    logits[best] = -np.inf
    proposal = propose(SamplingSettings(temperature=0, top_k=64), logits)
    assert not set(best.tolist()) & set(proposal.token_ids.tolist())


def test_a_closed_chain_can_be_closed_again_and_not_be_used() -> None:
    chain = SamplerChain(SamplingSettings(), n_vocab=N_VOCAB)
    chain.close()
    chain.close()
    with pytest.raises(EngineError, match="sampler is closed"):
        chain.propose(random_logits(0))
    with pytest.raises(EngineError, match="sampler is closed"):
        chain.accept(1)


def test_the_engine_tells_the_chain_what_was_accepted_and_nothing_else(
    tiny_llama_path: Path,
) -> None:
    settings = SamplingSettings(temperature=0, top_k=MAX_TOP_K, presence_penalty=4.0)
    with open_engine(tiny_llama_path) as opened:
        opened.prefill([9, 10, 11], sampling=settings)
        best, second, third = opened.engine.propose().token_ids[:3].tolist()
        opened.engine.evaluate(best)
        opened.engine.evaluate_candidates([second, third])
        opened.engine.accept(second)
        proposal = opened.engine.propose()
        assert opened.sampler is not None
        token_ids, log_probs, _ = numpy_chain(opened.sampler.logits, settings, [second])
    np.testing.assert_array_equal(proposal.token_ids, token_ids)
    np.testing.assert_allclose(proposal.log_probs, log_probs, rtol=0, atol=1e-4)
