"""Images in a prompt: encoded once, in their place, and gone with the prompt that they were in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from llama_cpp import mtmd_cpp
from numpy.typing import NDArray

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import MediaRun, PromptItem, TokenRun
from safesteer_edge.errors import EngineError, MediaError, ModelFileError
from tests.engine.open_engine import (
    F32_TOLERANCE,
    N_EMBD,
    Float32Array,
    OpenEngine,
    open_engine,
    random_prompt,
    random_vector,
)
from tests.numpy_llama import NumpyLlama
from tests.tiny_models import IMG_END_ID, IMG_ID, write_tiny_llama, write_tiny_projector
from tests.tiny_models.families.projectors import write_projector

Pixels = NDArray[np.uint8]

BEFORE = random_prompt(np.random.default_rng(11), 6)
AFTER = random_prompt(np.random.default_rng(12), 5)


def picture(seed: int, height: int = 56, width: int = 56) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(opened: OpenEngine, pixels: Pixels) -> tuple[PromptItem, ...]:
    assert opened.projector is not None
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    return opened.projector.encode_image(pixels, sha256=sha256).items


def prompt_with(opened: OpenEngine, *pictures: Pixels) -> list[PromptItem]:
    """Text, the pictures with text between them, and text."""
    items: list[PromptItem] = [TokenRun(tuple(BEFORE))]
    for pixels in pictures:
        items += [*encode(opened, pixels), TokenRun(tuple(AFTER))]
    return items


class Counted:
    """A native call that counts how often it is made."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.n_calls = 0

    def __call__(self, *arguments: Any) -> Any:
        self.n_calls += 1
        return self._call(*arguments)


def embed(path: Path, items: Sequence[PromptItem]) -> Float32Array:
    """The input embeddings of a prompt: (n_tokens, n_embd)."""
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "token_embd.weight")
    table = np.array(tensor.data, dtype=np.float32).reshape(-1, N_EMBD)
    return np.concatenate(
        [
            table[list(item.token_ids)] if isinstance(item, TokenRun) else item.embeddings
            for item in items
        ]
    )


def test_an_image_becomes_its_tokens_between_the_models_own_marks(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        begin, image, end = encode(opened, picture(0))
    assert (begin, end) == (TokenRun((IMG_ID,)), TokenRun((IMG_END_ID,)))
    assert isinstance(image, MediaRun)
    assert (image.n_tokens, image.n_positions) == (4, 4)
    assert image.embeddings.shape == (4, N_EMBD)
    assert image.embeddings.dtype == np.float32


def test_states_and_logits_after_images_are_what_numpy_computes(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    vector = random_vector()
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path, layers=(1, 3)) as opened:
        items = prompt_with(opened, picture(0), picture(1, 40, 100))  # the second has two tiles
        stats = opened.prefill(items, control_vector=vector)
        logits = opened.next_logits()
    embeddings = embed(tiny_llama_path, items)
    n_tokens = len(embeddings)
    assert (stats.n_prompt_tokens, stats.n_media_tokens) == (n_tokens, 12)
    assert stats.n_prompt_tokens == 6 + 2 * 5 + 2 * 2 + 12
    expected = NumpyLlama(tiny_llama_path).forward_embeddings(
        embeddings, vector, steered_from=n_tokens - 1
    )
    np.testing.assert_allclose(logits, expected.logits[-1], rtol=0, atol=F32_TOLERANCE)
    states = expected.block_outputs[[1, 3], -1].ravel()
    np.testing.assert_allclose(stats.last_state, states, rtol=0, atol=F32_TOLERANCE)


def test_an_image_longer_than_a_batch_is_read_in_parts(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(
        tiny_llama_path, mmproj=tiny_projector_path, n_batch=3, n_candidates=2
    ) as opened:
        items = prompt_with(opened, picture(0))
        opened.prefill(items)
        logits = opened.next_logits()
    expected = NumpyLlama(tiny_llama_path).forward_embeddings(embed(tiny_llama_path, items))
    np.testing.assert_allclose(logits, expected.logits[-1], rtol=0, atol=F32_TOLERANCE)


def test_what_is_in_the_image_changes_the_answer(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    probabilities: list[Float32Array] = []
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        for pictures in ([picture(0)], [picture(1)], []):
            opened.prefill([*prompt_with(opened, *pictures), TokenRun(tuple(AFTER))])
            logits = opened.next_logits()
            probabilities.append(np.exp(logits) / np.exp(logits).sum())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(probabilities[i] - probabilities[j]).sum() > 0.1


def test_the_same_pixels_are_encoded_once(
    tiny_llama_path: Path, tiny_projector_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_chunk = Counted(mtmd_cpp.mtmd_encode_chunk)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", encode_chunk)
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        first = encode(opened, picture(0))
        other = encode(opened, picture(1))
        assert encode_chunk.n_calls == 2
        assert encode(opened, picture(0).copy()) is first
        assert encode(opened, picture(1)) is other
        assert encode_chunk.n_calls == 2


def test_the_image_used_longest_ago_is_encoded_again_when_the_cache_is_full(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    two_images = 2 * 4 * N_EMBD * 4
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path, cache_bytes=two_images) as opened:
        a, b = encode(opened, picture(0)), encode(opened, picture(1))
        assert encode(opened, picture(0)) is a
        encode(opened, picture(2))
        assert encode(opened, picture(0)) is a
        again = encode(opened, picture(1))
        assert again is not b
        assert isinstance(again[1], MediaRun)
        assert isinstance(b[1], MediaRun)
        np.testing.assert_array_equal(again[1].embeddings, b[1].embeddings)
        opened.prefill([*prompt_with(opened), *b, TokenRun(tuple(AFTER))])  # its chunk lives on


def test_prompts_with_images_in_turn_each_equal_a_first_one(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    a, b = picture(0), picture(1)
    turns: list[list[Pixels]] = [[a], [b], [a], [], [a, b], [b, a], [a]]
    n_reused: list[int] = []
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path, layers=(1,)) as opened:
        for pictures in turns:
            items = [*prompt_with(opened, *pictures), TokenRun(tuple(AFTER))]
            stats = opened.prefill(items)
            n_reused.append(stats.n_reused_tokens)
            actual = [stats.last_state, opened.feed([50, 60])[-1], opened.next_logits()]
            with open_engine(tiny_llama_path, mmproj=tiny_projector_path, layers=(1,)) as fresh:
                items = [*prompt_with(fresh, *pictures), TokenRun(tuple(AFTER))]
                stats = fresh.prefill(items)
                assert stats.n_reused_tokens == 0
                expected = [stats.last_state, fresh.feed([50, 60])[-1], fresh.next_logits()]
            for have, want in zip(actual, expected, strict=True):
                np.testing.assert_allclose(have, want, rtol=0, atol=F32_TOLERANCE)
    # Another image differs after <img>; [a, b] shares no more with a text than BEFORE.
    assert n_reused == [0, 7, 7, 6, 6, 7, 7]


def test_an_image_in_the_cache_is_not_evaluated_again(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        items = prompt_with(opened, picture(0))
        n_tokens = opened.prefill(items).n_prompt_tokens
        opened.feed([50])
        longer = [*items, TokenRun((50, *AFTER))]
        stats = opened.prefill(longer)
        assert (stats.n_reused_tokens, stats.n_media_tokens) == (n_tokens + 1, 4)
        assert opened.engine.n_free == opened.context.n_ctx - stats.n_prompt_tokens


def test_a_decode_that_fails_within_an_image_leaves_nothing_of_it(
    tiny_llama_path: Path, tiny_projector_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_image_chunk = mtmd_cpp.mtmd_helper_decode_image_chunk

    def decode_and_fail(*arguments: Any) -> int:
        assert decode_image_chunk(*arguments) == 0
        return 1

    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        items = prompt_with(opened, picture(0))
        monkeypatch.setattr(mtmd_cpp, "mtmd_helper_decode_image_chunk", decode_and_fail)
        with pytest.raises(EngineError, match="media chunk"):
            opened.prefill(items)
        monkeypatch.setattr(mtmd_cpp, "mtmd_helper_decode_image_chunk", decode_image_chunk)
        opened.prefill(items)
        logits = opened.next_logits()
    expected = NumpyLlama(tiny_llama_path).forward_embeddings(embed(tiny_llama_path, items))
    np.testing.assert_allclose(logits, expected.logits[-1], rtol=0, atol=F32_TOLERANCE)


def test_a_prompt_cannot_end_with_an_image_or_carry_one_past_the_projector(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        begin, image, _ = encode(opened, picture(0))
        with pytest.raises(EngineError, match="must end with a text token"):
            opened.prefill([begin, image])
        with (
            open_engine(tiny_llama_path) as without,
            pytest.raises(EngineError, match="no projector is loaded"),
        ):
            without.prefill([begin, image, TokenRun(tuple(AFTER))])


def test_sound_is_refused_by_a_projector_that_only_sees(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        assert opened.projector is not None
        assert (opened.projector.sees, opened.projector.hears) == (True, False)
        with pytest.raises(MediaError, match="cannot take sound"):
            opened.projector.encode_audio(np.zeros(1600, dtype=np.float32), sha256="0" * 64)


def test_embeddings_that_are_no_numbers_are_refused_and_not_cached(
    tiny_llama_path: Path, tmp_path: Path
) -> None:
    path = write_tiny_projector(tmp_path / "mmproj.gguf")
    reader = GGUFReader(path, "r+")
    bias = next(t for t in reader.tensors if t.name == "mm.model.mlp.3.bias")
    bias.data[:] = np.nan
    reader.data.flush()
    with open_engine(tiny_llama_path, mmproj=path) as opened:
        for _ in range(2):
            with pytest.raises(MediaError, match="non-finite"):
                encode(opened, picture(0))


def test_a_projector_of_another_width_is_refused(tiny_llama_path: Path, tmp_path: Path) -> None:
    path = write_tiny_projector(tmp_path / "wide.gguf", n_embd=96)
    with (
        NativeModel(tiny_llama_path) as model,
        pytest.raises(ModelFileError, match=r"n_embd = 64.* and mmproj \(n_embd = 96\)\); use the"),
    ):
        Projector(path, model, n_threads=1)
    wide_model = write_tiny_llama(tmp_path / "wide-llama.gguf", n_embd=96)
    with NativeModel(wide_model) as model:
        Projector(path, model, n_threads=1).close()


def test_a_closed_projector_can_be_closed_again_and_not_be_used(
    tiny_llama_path: Path, tiny_projector_path: Path
) -> None:
    with open_engine(tiny_llama_path, mmproj=tiny_projector_path) as opened:
        items = prompt_with(opened, picture(0))
        assert opened.projector is not None
        opened.projector.close()
        opened.projector.close()
        with pytest.raises(EngineError, match="projector is closed"):
            encode(opened, picture(0))
        with pytest.raises(EngineError, match="projector is closed"):
            opened.prefill(items)


def test_a_projector_whose_marks_the_vocabulary_lacks_is_refused_at_its_first_image(
    tiny_llama_path: Path, tmp_path: Path
) -> None:
    mmproj = write_projector(tmp_path / "mmproj.gguf", "idefics3")
    with open_engine(tiny_llama_path, mmproj=mmproj) as opened:
        with pytest.raises(MediaError, match="puts marks around images that the vocabulary"):
            encode(opened, picture(0))
        opened.prefill(BEFORE)
