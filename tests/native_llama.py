"""What llama.cpp itself computes, through its C functions and nothing of our engine.

The other oracle beside NumPy: small, slow, one thread, F32 KV cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import _ggml, mtmd_cpp
from numpy.typing import NDArray

from tests.numpy_llama import NumpyForward

Float32Array = NDArray[np.float32]


@llama_cpp.llama_log_callback
def _drop_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Kept at module level: llama.cpp goes on calling it."""


def silence_native_logs() -> None:
    """Send the messages of llama.cpp, ggml and libmtmd nowhere, until a callback is set anew."""
    llama_cpp.llama_log_set(_drop_log, ctypes.c_void_p())
    mtmd_cpp.mtmd_log_set(_drop_log, ctypes.c_void_p())


@contextmanager
def native_model(path: Path) -> Iterator[Any]:
    """A loaded model's handle (llama_model_p), freed at the end of the block."""
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False  # ggml's AMX path crashes on some Xeons
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp did not load {path}"
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


@contextmanager
def native_context(model: Any, cb_eval: Any = None, *, embeddings: bool = True) -> Iterator[Any]:
    """A context of 256 cells with an F32 cache.

    embeddings: it gives the final states beside the logits; some graphs then give no logits.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 256, 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.embeddings = embeddings
    if cb_eval is not None:
        params.cb_eval = cb_eval
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "llama.cpp did not make a context"
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


def decode(context: Any, tokens: Sequence[int] | Float32Array, *, first_position: int = 0) -> int:
    """Evaluate token ids, or input embeddings (n_tokens, n_embd), on sequence 0.

    Every position is an output. Returns llama_decode's status: 0 is success.
    """
    is_embeddings = isinstance(tokens, np.ndarray)
    batch = llama_cpp.llama_batch_init(len(tokens), tokens.shape[1] if is_embeddings else 0, 1)
    try:
        batch.n_tokens = len(tokens)
        if is_embeddings:
            data = tokens.astype(np.float32).tobytes()
            ctypes.memmove(batch.embd, data, len(data))
        for i in range(len(tokens)):
            if not is_embeddings:
                batch.token[i] = tokens[i]
            batch.pos[i] = first_position + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        return llama_cpp.llama_decode(context, batch)
    finally:
        llama_cpp.llama_batch_free(batch)


def logits_of(context: Any, n_tokens: int, n_vocab: int) -> Float32Array:
    """The logits of the last decode, (n_tokens, n_vocab)."""
    return _rows(llama_cpp.llama_get_logits_ith, context, n_tokens, n_vocab)


def _rows(read: Any, context: Any, n_tokens: int, width: int) -> Float32Array:
    return np.stack([np.ctypeslib.as_array(read(context, i), (width,)) for i in range(n_tokens)])


class _BlockOutputs:
    """Collects the tensors `l_out-L` and `result_norm` through the evaluation callback."""

    def __init__(self) -> None:
        # Loaded anew, so that the signatures set here are not those of anyone else's handle.
        ggml: Any = ctypes.CDLL(_ggml.libggml._name)
        self._name = ggml.ggml_get_name
        self._name.restype, self._name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._n_bytes = ggml.ggml_nbytes
        self._n_bytes.restype, self._n_bytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        self._read = ggml.ggml_backend_tensor_get
        self._read.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_tensor)
        self.by_layer: dict[int, Float32Array] = {}
        self.final_norm = np.empty(0, dtype=np.float32)

    def _on_tensor(self, tensor: int, ask: bool, user_data: int) -> bool:
        kind, _, layer_index = self._name(tensor).decode().partition("-")
        is_wanted = kind in ("l_out", "result_norm")
        if is_wanted and not ask:
            values = np.empty(self._n_bytes(tensor) // 4, dtype=np.float32)
            self._read(tensor, values.ctypes.data, 0, values.nbytes)
            if kind == "l_out":
                self.by_layer[int(layer_index)] = values
            else:
                self.final_norm = values
        return is_wanted or not ask


def native_forward(
    path: Path,
    tokens: Sequence[int] | Float32Array,
    control_vector: Float32Array | None = None,
) -> NumpyForward:
    """The three arrays that NumpyLlama gives, computed by llama.cpp from tokens or embeddings."""
    blocks = _BlockOutputs()
    with (
        native_model(path) as model,
        native_context(model, blocks.callback, embeddings=False) as context,
    ):
        n_embd, n_layer = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_model_n_layer(model)
        if control_vector is not None:
            data = np.ascontiguousarray(control_vector[1:])
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            llama_cpp.llama_set_adapter_cvec(context, pointer, data.size, n_embd, 1, n_layer - 1)
        assert decode(context, tokens) == 0
        vocab: Any = llama_cpp.llama_model_get_vocab(model)
        n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        n_tokens = len(tokens)
        return NumpyForward(
            np.stack([blocks.by_layer[i].reshape(-1, n_embd) for i in range(n_layer)]),
            blocks.final_norm.reshape(-1, n_embd),
            logits_of(context, n_tokens, n_vocab),
        )


def tokenize(model: Any, text: bytes, *, parse_special: bool) -> list[int]:
    capacity = 4 * len(text) + 16
    buffer = (llama_cpp.llama_token * capacity)()
    vocab: Any = llama_cpp.llama_model_get_vocab(model)
    n = llama_cpp.llama_tokenize(vocab, text, len(text), buffer, capacity, True, parse_special)
    assert n >= 0
    return buffer[:n]


def detokenize(model: Any, token_ids: Sequence[int]) -> bytes:
    buffer: Any = ctypes.create_string_buffer(1024)
    vocab: Any = llama_cpp.llama_model_get_vocab(model)
    tokens = (llama_cpp.llama_token * len(token_ids))(*token_ids)
    n = llama_cpp.llama_detokenize(vocab, tokens, len(tokens), buffer, 1024, False, True)
    assert n >= 0
    return buffer.raw[:n]


@contextmanager
def native_projector(path: Path, model: Any) -> Iterator[Any]:
    """A libmtmd context (mtmd_context_p) on one CPU thread, freed at the end of the block."""
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.warmup, params.n_threads = False, False, 1
    projector = mtmd_cpp.mtmd_init_from_file(str(path).encode(), model, params)
    assert projector, f"libmtmd did not load {path}"
    try:
        yield projector
    finally:
        mtmd_cpp.mtmd_free(projector)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image in a prompt.

    text_chunks: the token ids before, between and after the image's parts.
    embeddings: float32 (n_parts, n_tokens_per_part, n_embd).
    """

    text_chunks: list[list[int]]
    embeddings: Float32Array


def encode_image(projector: Any, pixels: NDArray[np.uint8], n_embd: int) -> EncodedImage:
    """Tokenize the text 'a' and then the image, as parts, and encode the image.

    pixels: (height, width, 3), RGB.
    """
    with ExitStack() as owned:
        height, width, _ = pixels.shape
        data = (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels.tobytes())
        bitmap: Any = mtmd_cpp.mtmd_bitmap_init(width, height, data)
        owned.callback(mtmd_cpp.mtmd_bitmap_free, bitmap)
        text = mtmd_cpp.mtmd_input_text(b"a", 1, False, False)
        parts = (
            mtmd_cpp.mtmd_input_part(ctypes.pointer(text), None),
            mtmd_cpp.mtmd_input_part(None, bitmap),
        )
        pointers = (ctypes.POINTER(mtmd_cpp.mtmd_input_part) * 2)(*map(ctypes.pointer, parts))
        chunks: Any = mtmd_cpp.mtmd_input_chunks_init()
        owned.callback(mtmd_cpp.mtmd_input_chunks_free, chunks)
        status = mtmd_cpp.mtmd_tokenize_from_parts(projector, chunks, pointers, 2, False)
        assert status == 0, f"mtmd_tokenize_from_parts returned {status}"
        return _encode_chunks(projector, chunks, n_embd)


def _encode_chunks(projector: Any, chunks: Any, n_embd: int) -> EncodedImage:
    text_chunks: list[list[int]] = []
    parts: list[Float32Array] = []
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk: Any = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        n_tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
            n_read = ctypes.pointer(ctypes.c_size_t())
            token_ids: Any = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, n_read)
            text_chunks.append(token_ids[:n_tokens])
            continue
        assert mtmd_cpp.mtmd_encode_chunk(projector, chunk) == 0
        output: Any = mtmd_cpp.mtmd_get_output_embd(projector)
        parts.append(np.ctypeslib.as_array(output, (n_tokens, n_embd)).copy())
    return EncodedImage(text_chunks, np.stack(parts))
