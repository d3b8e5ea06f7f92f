"""The tiny models load in llama.cpp, which computes with them what NumPy says it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests.native_llama import (
    decode,
    detokenize,
    encode_image,
    logits_of,
    native_context,
    native_forward,
    native_model,
    native_projector,
    silence_native_logs,
    tokenize,
)
from tests.numpy_llama import NumpyForward, NumpyLlama
from tests.tiny_models import (
    FIRST_BYTE_ID,
    IM_END_ID,
    IM_START_ID,
    IMG_END_ID,
    IMG_ID,
    tiny_vocabulary,
    write_tiny_llama,
    write_tiny_mamba,
    write_tiny_projector,
    write_tiny_qwen2,
)

PROMPT = (IM_START_ID, 9, 87, 200, 310, 54, 9, 87, 118, IM_END_ID, 261, 299)
N_LAYER, N_EMBD, N_VOCAB = 4, 64, 320
LETTER_A_ID = FIRST_BYTE_ID + ord("a")
# The largest difference seen is 1.2e-5 in F32: the two sum in different orders. llama.cpp rounds
# the activations to F16 where the weights are F16 (seen: 1.2e-2).
F32_TOLERANCE = 1e-4
F16_TOLERANCE = 5e-2


@pytest.fixture(autouse=True)
def quiet() -> None:
    silence_native_logs()


@pytest.fixture
def llama_path(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "llama.gguf")


def assert_same(actual: NumpyForward, expected: NumpyForward, tolerance: float) -> None:
    for name in ("block_outputs", "final_norm", "logits"):
        np.testing.assert_allclose(
            getattr(actual, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name
        )


def random_vectors(n_rows: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((n_rows, N_EMBD), dtype=np.float32)


def test_llama_cpp_and_numpy_compute_the_same_states_and_logits(llama_path: Path) -> None:
    expected = NumpyLlama(llama_path).forward(PROMPT)
    assert expected.block_outputs.shape == (N_LAYER, len(PROMPT), N_EMBD)
    assert expected.logits.shape == (len(PROMPT), N_VOCAB)
    assert_same(native_forward(llama_path, PROMPT), expected, F32_TOLERANCE)


def test_they_agree_in_another_shape_and_in_f16(tmp_path: Path) -> None:
    path = write_tiny_llama(
        tmp_path / "wide.gguf",
        seed=7,
        n_layer=3,
        n_embd=96,
        n_head=6,
        n_head_kv=2,
        n_ff=160,
        quantization="F16",
    )
    assert_same(native_forward(path, PROMPT), NumpyLlama(path).forward(PROMPT), F16_TOLERANCE)


def test_they_agree_under_a_control_vector_which_leaves_block_0_alone(llama_path: Path) -> None:
    model, vector = NumpyLlama(llama_path), random_vectors(N_LAYER)
    steered, plain = model.forward(PROMPT, vector), model.forward(PROMPT)
    assert_same(native_forward(llama_path, PROMPT, vector), steered, F32_TOLERANCE)
    np.testing.assert_array_equal(steered.block_outputs[0], plain.block_outputs[0])
    np.testing.assert_allclose(
        steered.block_outputs[1] - plain.block_outputs[1], vector[1][None].repeat(12, 0), atol=1e-5
    )


def test_they_agree_on_input_embeddings(llama_path: Path) -> None:
    embeddings = random_vectors(5)
    expected = NumpyLlama(llama_path).forward_embeddings(embeddings)
    assert_same(native_forward(llama_path, embeddings), expected, F32_TOLERANCE)


def test_positions_before_the_steered_ones_stay_as_they_were(llama_path: Path) -> None:
    model, vector = NumpyLlama(llama_path), random_vectors(N_LAYER)
    plain, steered = model.forward(PROMPT), model.forward(PROMPT, vector, steered_from=10)
    np.testing.assert_allclose(steered.logits[:10], plain.logits[:10], atol=1e-5)
    assert np.abs(steered.logits[10:] - plain.logits[10:]).max(axis=1).min() > 1


def test_numpy_refuses_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qwen2"):
        NumpyLlama(write_tiny_qwen2(tmp_path / "qwen2.gguf"))


def test_logits_have_a_clear_best_token_which_is_never_the_end(llama_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = NumpyLlama(llama_path).forward(rng.integers(0, N_VOCAB, 200).tolist()).logits
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert 0.15 < np.median(probabilities.max(axis=1)) < 0.8
    assert probabilities[:, IM_END_ID].mean() < 1e-3
    best = set(logits.argmax(axis=1).tolist())
    assert len(best) > 50
    assert min(best) >= FIRST_BYTE_ID


def test_hidden_states_of_different_tokens_are_far_apart(llama_path: Path) -> None:
    model = NumpyLlama(llama_path)
    states = np.stack([model.forward([t]).final_norm[0] for t in range(FIRST_BYTE_ID, N_VOCAB, 5)])
    distances = np.linalg.norm(states[:, None] - states[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 0.5 * np.linalg.norm(states, axis=1).mean()


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_quantization_loads_and_keeps_the_f32_weights(
    tmp_path: Path, llama_path: Path, quantization: Any
) -> None:
    path = write_tiny_llama(tmp_path / "quantized.gguf", quantization=quantization)
    f32_logits = NumpyLlama(llama_path).forward(PROMPT).logits
    logits = native_forward(path, PROMPT).logits
    assert np.corrcoef(logits.ravel(), f32_logits.ravel())[0, 1] > 0.7
    assert np.abs(logits - f32_logits).max() > 1e-3


def test_the_seed_decides_the_file(tmp_path: Path) -> None:
    first, again = (write_tiny_llama(tmp_path / f"{i}.gguf", seed=5) for i in range(2))
    other = write_tiny_llama(tmp_path / "other.gguf", seed=6)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_text_survives_the_tokenizer(llama_path: Path) -> None:
    text = "Can you help me with the image? I don't, é ☃ 123 \x00\n  x".encode()
    with native_model(llama_path) as model:
        token_ids = tokenize(model, text, parse_special=False)
        assert detokenize(model, token_ids) == text
    assert len(token_ids) < len(text)


def test_control_tokens_are_found_only_where_asked_for(llama_path: Path) -> None:
    text = b"<|im_start|>a<img></img><|im_end|>"
    with native_model(llama_path) as model:
        special = tokenize(model, text, parse_special=True)
        plain = tokenize(model, text, parse_special=False)
        vocab: Any = llama_cpp.llama_model_get_vocab(model)
        assert llama_cpp.llama_vocab_eos(vocab) == IM_END_ID
        assert llama_cpp.llama_vocab_is_control(vocab, IMG_ID)
    assert special == [IM_START_ID, LETTER_A_ID, IMG_ID, IMG_END_ID, IM_END_ID]
    assert min(plain) >= FIRST_BYTE_ID


def test_every_merged_token_is_what_its_text_becomes(tmp_path: Path) -> None:
    extra = (" weapon", "papaya", " Grüße")
    vocabulary = tiny_vocabulary(extra)
    assert len(tiny_vocabulary().tokens) == N_VOCAB
    path = write_tiny_llama(tmp_path / "extra.gguf", extra_vocab=extra)
    with native_model(path) as model:
        for token_id in range(FIRST_BYTE_ID + 256, len(vocabulary.tokens)):
            text = detokenize(model, [token_id])
            if text.isascii():  # half a character is not text that can be asked for
                assert tokenize(model, text, parse_special=False) == [token_id]
        assert len(tokenize(model, " Grüße".encode(), parse_special=False)) == 1


def test_a_recurrent_model_decodes_and_refuses_to_forget_a_part(tmp_path: Path) -> None:
    path = write_tiny_mamba(tmp_path / "mamba.gguf")
    with native_model(path) as model, native_context(model) as context:
        memory: Any = llama_cpp.llama_get_memory(context)
        assert llama_cpp.llama_model_is_recurrent(model)
        assert decode(context, PROMPT) == 0
        at_once = logits_of(context, len(PROMPT), N_VOCAB)
        assert np.isfinite(at_once).all()
        assert not llama_cpp.llama_memory_seq_rm(memory, 0, len(PROMPT) - 1, -1)
        assert llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
        for position, token_id in enumerate(PROMPT):
            assert decode(context, [token_id], first_position=position) == 0
        stepwise = logits_of(context, 1, N_VOCAB)
    np.testing.assert_allclose(stepwise[0], at_once[-1], atol=F32_TOLERANCE)


def test_a_qwen2_model_decodes(tmp_path: Path) -> None:
    logits = native_forward(write_tiny_qwen2(tmp_path / "qwen2.gguf"), PROMPT).logits
    assert np.isfinite(logits).all()
    assert logits.std() > 1


def test_an_image_becomes_four_embeddings_of_the_language_models_width(
    tmp_path: Path, llama_path: Path
) -> None:
    path = write_tiny_projector(tmp_path / "mmproj.gguf")
    colours = [np.full((40, 56, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 9))]
    with native_model(llama_path) as model, native_projector(path, model) as projector:
        red, again, blue = (
            encode_image(projector, pixels, N_EMBD) for pixels in (colours[0], *colours)
        )
    assert red.text_chunks == [[LETTER_A_ID, IMG_ID], [IMG_END_ID]]
    assert red.embeddings.shape == (1, 4, N_EMBD)
    assert np.isfinite(red.embeddings).all()
    assert 0.5 < red.embeddings.std() < 2
    np.testing.assert_array_equal(red.embeddings, again.embeddings)
    assert np.corrcoef(red.embeddings.ravel(), blue.embeddings.ravel())[0, 1] < 0.7


def test_an_image_larger_than_the_projectors_becomes_a_tile_and_an_overview(
    tmp_path: Path, llama_path: Path
) -> None:
    path = write_tiny_projector(tmp_path / "mmproj.gguf")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 100, 3), dtype=np.uint8)
    with native_model(llama_path) as model, native_projector(path, model) as projector:
        assert encode_image(projector, pixels, N_EMBD).embeddings.shape == (2, 4, N_EMBD)
