"""Many sequences at once give what one after the other gives: the same states, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.engine.context import ContextSettings
from safesteer_edge.engine.many_sequences import KnownText, ManySequences, OpenAnswer
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.prompt_items import TextPrompt
from safesteer_edge.errors import EngineError, PromptTooLongError
from safesteer_edge.formats.gguf_file import read_gguf
from tests.engine.open_engine import F32_TOLERANCE, open_engine, random_prompt
from tests.engine.test_side_prompt import mean_of_prompts
from tests.tiny_models import write_tiny_llama, write_tiny_mamba, write_tiny_qwen2

LAYERS = (2, 0)
WRITERS = {"llama": write_tiny_llama, "qwen2": write_tiny_qwen2}  # both routes to inner blocks
_RNG = np.random.default_rng(0)
BEGINNING = random_prompt(_RNG, 9)
# Nine prompts of several lengths that begin alike, two of which are one and the same.
PROMPTS = [BEGINNING + random_prompt(_RNG, n) for n in (1, 2, 5, 9, 13, 4, 7, 30)]
PROMPTS.append(PROMPTS[2])


@pytest.fixture(params=list(WRITERS), scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("many") / "tiny.gguf")


def opened(path: Path, *, n_at_once: int = 4, n_ctx: int = 256, n_batch: int = 32) -> ManySequences:
    settings = ContextSettings(
        n_ctx, n_candidates=n_at_once, n_threads=1, n_batch=n_batch, kv_type=0
    )
    model = NativeModel(path)
    return ManySequences(model, read_gguf(path).architecture, LAYERS, settings)


@pytest.fixture(scope="module")
def many(path: Path) -> Iterator[ManySequences]:
    with closing(opened(path)) as sequences:
        yield sequences


def test_known_texts_have_the_states_that_decoding_steps_give(path: Path, many: ManySequences):
    after = [random_prompt(_RNG, 3), random_prompt(_RNG, 5)]
    # Messages begin where all prompts are still alike, and elsewhere; one is empty.
    prompts = [TextPrompt(p, range(at, min(3 * at, len(p) - 1))) for at, p in enumerate(PROMPTS)]
    texts = [KnownText(prompt, after[: at % 3] or ((),)) for at, prompt in enumerate(prompts)]
    found = list(many.read(texts))
    assert len(found) == len(texts)
    with open_engine(path, layers=LAYERS) as alone:
        for text, (message, states) in zip(texts, found, strict=True):
            mean = mean_of_prompts(alone, text.prompt.token_ids, text.prompt.message)
            np.testing.assert_allclose(message, mean, atol=F32_TOLERANCE)
            for continuation, rows in zip(text.continuations, states, strict=True):
                last = alone.prefill(text.prompt.token_ids).last_state
                fed = [last[np.newaxis], *([alone.feed(continuation)] if continuation else [])]
                np.testing.assert_allclose(rows, np.concatenate(fed), atol=F32_TOLERANCE)


def test_answers_at_once_are_those_of_one_after_the_other(path: Path, many: ManySequences):
    given = [[], random_prompt(_RNG, 2)]
    questions = [
        OpenAnswer(TextPrompt(prompt, range(3, len(prompt) - 2)), 12, given[at % 2])
        for at, prompt in enumerate(PROMPTS)
    ]
    n_ties = 0
    with open_engine(path, layers=LAYERS) as alone:
        for question, (token_ids, states, message) in zip(
            questions, many.answer(questions), strict=True
        ):
            prompt = question.prompt
            mean = mean_of_prompts(alone, prompt.token_ids, prompt.message)
            np.testing.assert_allclose(message, mean, atol=F32_TOLERANCE)
            expected = [alone.prefill(prompt.token_ids).last_state]
            for at, token_id in enumerate(token_ids):
                logits = alone.next_logits()
                wanted = [*question.given, None][min(at, len(question.given))]
                if wanted is not None:
                    assert token_id == wanted
                elif token_id != logits.argmax():  # as good as the best one, but for rounding
                    assert logits[token_id] >= logits.max() - F32_TOLERANCE
                    n_ties += 1
                expected.append(alone.feed([token_id])[0])
            assert len(token_ids) == 12 or alone.engine.is_end(token_ids[-1])
            np.testing.assert_allclose(states, np.stack(expected), atol=F32_TOLERANCE)
    print(f"ties: {n_ties}")
    assert n_ties <= 1


def test_a_batch_comes_back_before_the_next_text_is_taken(many: ManySequences):
    taken: list[int] = []

    def texts() -> Iterator[KnownText]:
        for at, prompt in enumerate(PROMPTS):
            taken.append(at)
            yield KnownText(TextPrompt(prompt))

    next(many.read(texts()))
    assert len(taken) == 5  # four at once, and the first of the next


def test_a_text_longer_than_the_context_is_refused(many: ManySequences):
    with pytest.raises(PromptTooLongError, match="raise --ctx"):
        list(many.read([KnownText(TextPrompt(random_prompt(_RNG, 300)))]))


def test_a_recurrent_state_is_refused(tmp_path: Path):
    with pytest.raises(EngineError, match="one sequence at a time"):
        opened(write_tiny_mamba(tmp_path / "mamba.gguf"))
