"""The outside reference runs what we run: same prompt, same sampling, hence the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.engine.reference import ReferenceChat, ReferenceSettings
from safesteer_edge.errors import EngineError
from safesteer_edge.guard.events import Step
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.session.session import open_session
from safesteer_edge.session.settings import SessionSettings

QUESTIONS = ("Why is the sky blue?", "Why is the sea salty?")
N_CTX, MAX_TOKENS = 256, 12


def reference_settings(path: Path, sampling: SamplingSettings) -> ReferenceSettings:
    return ReferenceSettings(path, N_CTX, 1, sampling, MAX_TOKENS)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_reference_draws_the_tokens_that_an_unguarded_session_draws(
    tiny_llama_path: Path, temperature: float
):
    sampling = SamplingSettings(temperature=temperature, top_k=8, seed=5)
    settings = SessionSettings(
        model=str(tiny_llama_path),
        guard="off",
        sampling=sampling,
        max_tokens=MAX_TOKENS,
        n_ctx=N_CTX,
        n_threads=1,
    )
    with (
        open_session(settings) as session,
        ReferenceChat(reference_settings(tiny_llama_path, sampling)) as reference,
    ):
        for question in QUESTIONS:
            session.reset()
            own = tuple(e.token_id for e in session.ask(question) if isinstance(e, Step))
            session.reset()
            answer = reference.answer(question)
            assert answer.token_ids == own
            assert answer.n_prompt_tokens == len(session.prompt_token_ids(question))


def test_each_token_is_timed_and_all_but_the_last_are_evaluated(tiny_llama_path: Path):
    with ReferenceChat(reference_settings(tiny_llama_path, SamplingSettings())) as reference:
        answer = reference.answer(QUESTIONS[0])
    assert len(answer.token_times_s) == len(answer.token_ids) == MAX_TOKENS
    assert list(answer.token_times_s) == sorted(answer.token_times_s)
    assert answer.n_forward_passes == MAX_TOKENS - 1
    assert answer.finish_reason == "length"
    assert answer.elapsed_s >= answer.token_times_s[-1]


def test_closing_twice_is_safe(tiny_llama_path: Path):
    reference = ReferenceChat(reference_settings(tiny_llama_path, SamplingSettings()))
    reference.close()
    reference.close()


def test_a_file_that_cannot_be_loaded_is_an_engine_error(tmp_path: Path):
    with pytest.raises(EngineError, match="absent"):
        ReferenceChat(reference_settings(tmp_path / "absent.gguf", SamplingSettings()))
    (tmp_path / "bad.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(EngineError, match="cannot load"):
        ReferenceChat(reference_settings(tmp_path / "bad.gguf", SamplingSettings()))


def test_nothing_is_written_to_the_terminal(
    tiny_llama_path: Path, capfd: pytest.CaptureFixture[str]
):
    with ReferenceChat(reference_settings(tiny_llama_path, SamplingSettings())) as reference:
        reference.answer(QUESTIONS[0])
    assert capfd.readouterr() == ("", "")
