"""Proofs on images in a family's prompts, against libmtmd's own way of evaluating them."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from numpy.typing import NDArray
from PIL import Image

from safesteer_edge.engine.prompt_items import MediaRun, PromptItem, TokenRun
from tests.engine.open_engine import Float32Array, OpenEngine, open_engine
from tests.families.engine_proofs import assert_close
from tests.families.family_files import FamilyFiles, random_tokens
from tests.native_llama import decode, native_context, native_model, native_projector

NOT_SEEING = "no: none of its models sees"

_BEFORE, _BETWEEN, _AFTER = random_tokens(5, 20), random_tokens(6, 5), random_tokens(7, 6)


def prove_images(files: FamilyFiles) -> str:
    """After two images and text, logits are those of libmtmd's own evaluation.

    Then an answer token is taken back over, and the second image is left out of the next prompt:
    as if it had never been there.
    """
    if files.mmproj is None:
        return NOT_SEEING
    square, wide = (np.asarray(Image.open(path)) for path in files.pictures)
    with open_engine(files.model, mmproj=files.mmproj, layers=(0,)) as opened:
        first, second = _encode(opened, square), _encode(opened, wide)
        one = [*_run(_BEFORE), *first, *_run(_AFTER)]
        two = [*_run(_BEFORE), *first, *_run(_BETWEEN), *second, *_run(_AFTER)]
        opened.prefill(two)
        assert_close(opened.next_logits(), _reference_logits(files, [square, wide], two))
        opened.engine.evaluate(60)
        opened.engine.evaluate_candidates([61, 62])
        opened.engine.accept(61)
        opened.feed([63, 64])
        opened.engine.take_back(2)
        opened.engine.append([65])
        continued = [*two, *_run([61, 65])]
        logits = opened.next_logits()
        assert_close(logits, _reference_logits(files, [square, wide], continued))
        opened.prefill(one)
        assert_close(opened.next_logits(), _reference_logits(files, [square], one))
        other = [*_run(_BEFORE), *second, *_run(_AFTER)]
        opened.prefill(other)
        assert np.abs(opened.next_logits() - logits).max() > 0.01
        assert_close(opened.next_logits(), _reference_logits(files, [wide], other))
    media = [item for item in two if isinstance(item, MediaRun)]
    if any(item.n_positions != item.n_tokens for item in media):
        return "by row and column (M-RoPE)"
    return "all at once (non-causal)" if files.family.projector == "gemma3" else "token by token"


def _run(token_ids: list[int]) -> list[PromptItem]:
    return [TokenRun(tuple(token_ids))]


def _encode(opened: OpenEngine, pixels: NDArray[np.uint8]) -> tuple[PromptItem, ...]:
    assert opened.projector is not None
    return opened.projector.encode_image(
        pixels, sha256=hashlib.sha256(pixels.tobytes()).hexdigest()
    ).items


def _reference_logits(
    files: FamilyFiles, pictures: list[NDArray[np.uint8]], items: list[PromptItem]
) -> Float32Array:
    """Logits after the items: each picture goes through mtmd_helper_eval_chunk_single."""
    assert files.mmproj is not None
    with (
        native_model(files.model) as model,
        native_projector(files.mmproj, model) as projector,
        native_context(model, embeddings=False) as context,
    ):
        position = 0
        chunks = [chunk for pixels in pictures for chunk in _media_chunks(projector, pixels)]
        media = iter(chunks)
        n_last = 0
        for item in items:
            if isinstance(item, TokenRun):
                assert decode(context, item.token_ids, first_position=position) == 0
                position, n_last = position + len(item.token_ids), len(item.token_ids)
            else:
                position = _evaluate(projector, context, next(media), position)
        for chunk in chunks:
            mtmd_cpp.mtmd_input_chunk_free(chunk)
        pointer = llama_cpp.llama_get_logits_ith(context, n_last - 1)
        vocab: Any = llama_cpp.llama_model_get_vocab(model)
        return np.ctypeslib.as_array(pointer, (llama_cpp.llama_vocab_n_tokens(vocab),)).copy()


def _media_chunks(projector: Any, pixels: NDArray[np.uint8]) -> list[Any]:
    """Copies of the chunks of one picture that are no text."""
    height, width, _ = pixels.shape
    data = (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels.tobytes())
    bitmap: Any = mtmd_cpp.mtmd_bitmap_init(width, height, data)
    part = mtmd_cpp.mtmd_input_part(None, bitmap)
    parts = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 1)(ctypes.pointer(part))
    chunks: Any = mtmd_cpp.mtmd_input_chunks_init()
    try:
        assert mtmd_cpp.mtmd_tokenize_from_parts(projector, chunks, parts, 1, False) == 0
        borrowed: list[Any] = [
            mtmd_cpp.mtmd_input_chunks_get(chunks, index)
            for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
        ]
        return [
            mtmd_cpp.mtmd_input_chunk_copy(chunk)
            for chunk in borrowed
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT
        ]
    finally:
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)


def _evaluate(projector: Any, context: Any, chunk: Any, position: int) -> int:
    new_position = ctypes.c_int32(position)
    sequence, start = ctypes.c_int32(0), ctypes.c_int32(position)
    status = mtmd_cpp.mtmd_helper_eval_chunk_single(
        projector, context, chunk, start, sequence, 256, False, ctypes.pointer(new_position)
    )
    assert status == 0
    return new_position.value


def picture_paths(files: FamilyFiles) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The pictures of the first and the third turn of a conversation; none if it sees nothing."""
    if files.mmproj is None:
        return (), ()
    square, wide = files.pictures
    return (square,), (wide,)
