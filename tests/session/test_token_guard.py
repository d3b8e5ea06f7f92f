"""The guard in somebody's own loop over llama-cpp-python chooses what a session chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Llama

from safesteer_edge import BundleError, EngineError, GuardError, SamplingSettings, TokenGuard
from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.guard.policy import RerankName
from safesteer_edge.probe.probe import OnnxProbe
from tests.guarded_tiny import (
    ALARMED,
    DRAWN,
    GREEDY,
    PATIENT_POLICY,
    QUIET,
    WAVERING,
    GuardedTiny,
)
from tests.session.turns import ask, opened
from tests.tiny_models import write_tiny_llama, write_tiny_qwen2

N_TOKENS = 12


@contextmanager
def llama_of(path: Path) -> Iterator[Llama]:
    llama = Llama(str(path), n_ctx=512, n_threads=1, flash_attn=True, verbose=False)
    try:
        yield llama
    finally:
        llama.close()


def chosen(guard: TokenGuard, llama: Llama, prompt: tuple[int, ...]) -> list[int]:
    """The tokens of an answer, at most N_TOKENS."""
    guard.read(prompt)
    token_ids: list[int] = []
    while len(token_ids) < N_TOKENS and (token_id := guard.choose()) is not None:
        token_ids.append(token_id)
        if token_id == llama.token_eos():
            break
    return token_ids


@pytest.mark.parametrize("rerank", ["lazy", "eager"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_it_chooses_the_tokens_of_a_session(
    guarded_tiny: GuardedTiny, sampling: SamplingSettings, rerank: RerankName
):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    with opened(guarded_tiny, bundle, sampling=sampling, rerank=rerank) as session:
        prompt = session.prompt_token_ids("Hello there")
        turn = ask(session, "Hello there")
    with (
        llama_of(guarded_tiny.model) as llama,
        TokenGuard(llama, bundle, sampling=sampling, rerank=rerank) as guard,
    ):
        token_ids = chosen(guard, llama, prompt)
        assert token_ids == [step.token_id for step in turn.steps]
        assert llama.n_tokens == len(prompt) + len(token_ids)
        assert guard.risk == pytest.approx(turn.ended.guard.risk, abs=1e-3)
        assert chosen(guard, llama, prompt)  # the next turn


def test_it_refuses_where_a_session_does(guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(ALARMED)
    with opened(guarded_tiny, bundle) as session:
        prompt = session.prompt_token_ids("Hello there")
        refusal = ask(session, "Hello there").ended.refusal
    assert refusal is not None
    with llama_of(guarded_tiny.model) as llama, TokenGuard(llama, bundle) as guard:
        assert len(chosen(guard, llama, prompt)) < N_TOKENS
        assert (guard.refusal, guard.refusal_text) == (refusal.reason, refusal.text)
        assert guard.choose() is None


def test_what_it_cannot_judge_it_refuses_from_then_on(
    guarded_tiny: GuardedTiny, monkeypatch: pytest.MonkeyPatch
):
    with (
        llama_of(guarded_tiny.model) as llama,
        TokenGuard(llama, guarded_tiny.bundle(QUIET)) as guard,
    ):
        guard.read([9, 10, 11])
        assert guard.choose() is not None
        monkeypatch.setattr(OnnxProbe, "score", lambda *_: np.array([np.nan], np.float32))
        with pytest.raises(GuardError):
            guard.choose()
        monkeypatch.undo()
        assert (guard.choose(), guard.refusal) == (None, "guard_failed")


def test_a_bundle_of_another_model_is_refused(guarded_tiny: GuardedTiny, tmp_path: Path):
    other = write_tiny_qwen2(tmp_path / "qwen2.gguf")
    with llama_of(other) as llama, pytest.raises(BundleError):
        TokenGuard(llama, guarded_tiny.bundle(QUIET))


def test_a_bundle_that_nobody_measured_is_refused(guarded_tiny: GuardedTiny, tmp_path: Path):
    bundle = write_bundle(tmp_path / "bundle", replace(guarded_tiny.parts(), figures={}))
    with llama_of(guarded_tiny.model) as llama, pytest.raises(BundleError, match="UNCALIBRATED"):
        TokenGuard(llama, bundle)


def test_a_prompt_comes_first(guarded_tiny: GuardedTiny):
    with (
        llama_of(guarded_tiny.model) as llama,
        TokenGuard(llama, guarded_tiny.bundle(QUIET)) as guard,
        pytest.raises(EngineError, match="read one first"),
    ):
        guard.choose()


def test_a_model_whose_states_a_llama_does_not_give_is_refused(tmp_path: Path):
    from safesteer_edge.engine.reference import GuestLlama

    path = write_tiny_qwen2(tmp_path / "qwen2.gguf")
    with llama_of(path) as llama, pytest.raises(EngineError, match="use open_session"):
        GuestLlama(llama, "qwen2", (1,), GREEDY)
    path = write_tiny_llama(tmp_path / "llama.gguf")
    with llama_of(path) as llama:
        GuestLlama(llama, "llama", (1,), GREEDY).close()
