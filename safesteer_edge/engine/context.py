"""A llama.cpp context: owns the native handle and one batch, and does the calls on the KV cache."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.native import (
    NativeObject,
    c_function,
    forget_native_errors,
    lib,
    native_error_cause,
)
from safesteer_edge.errors import EngineError, PromptTooLongError

MAIN_SEQUENCE = 0
DEFAULT_N_BATCH = 512
_NO_KV_SLOT = 1  # llama_decode: could not find a KV slot for the batch
_N_CTX_STEP = 256  # llama.cpp rounds n_ctx up to a multiple of it
# float * llama_get_logits_ith(struct llama_context *, int32_t), as an address
_get_logits = c_function(
    lib._lib, "llama_get_logits_ith", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32
)


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """How a context is made.

    n_ctx: cells of the KV cache, in tokens. n_batch: the longest run of tokens of one native call.
    n_candidates: sequences beside the main one. kv_type: ggml type of the cache (1 = F16, 0 = F32).
    """

    n_ctx: int
    n_candidates: int
    n_threads: int
    n_batch: int = DEFAULT_N_BATCH
    kv_type: int = 1


class ContextView(NativeObject):
    """What can be read of a llama.cpp context, whoever owns it: it must outlive the view."""

    _what = "the context"
    _logits: tuple[int | None, NDArray[np.float32]] = (None, np.empty(0, np.float32))

    def __init__(self, handle: Any, *, n_embd: int, n_vocab: int) -> None:
        self._own(handle, lambda _: None)  # its owner frees it
        self.n_embd = n_embd
        self._logits_row: Any = ctypes.c_float * n_vocab

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits of batch row `row` of the last decode: float32 (n_vocab,). −1: the last one's.

        A view into native memory, valid until the next decode: copy it to keep it.
        """
        address = _get_logits(self.handle, row)
        if not address:
            raise EngineError(f"llama.cpp has no logits for row {row} of the last batch")
        if address != self._logits[0]:  # mostly they are where they were
            row_there = self._logits_row.from_address(address)
            self._logits = address, np.frombuffer(row_there, dtype=np.float32)
        return self._logits[1]


class NativeContext(ContextView):
    """Decoding state of one conversation: a unified KV cache with `n_candidates` side sequences."""

    def __init__(
        self, model: NativeModel, settings: ContextSettings, *, eval_callback: Any = None
    ) -> None:
        """Make the context. eval_callback: a NodeCatcher (kept alive here), or None.

        Raises EngineError if there is not enough memory for the KV cache.
        """
        if settings.n_batch <= settings.n_candidates:  # llama.cpp would abort the process
            raise EngineError(
                f"a batch of {settings.n_batch} tokens cannot hold the prompt's sequence and "
                f"{settings.n_candidates} candidates; use a larger n_batch"
            )
        forget_native_errors()
        params = lib.llama_context_default_params()
        # llama.cpp cuts n_batch to the n_ctx that was asked for before it rounds that up.
        params.n_ctx = -(-settings.n_ctx // _N_CTX_STEP) * _N_CTX_STEP
        params.n_batch = params.n_ubatch = settings.n_batch
        # The main sequence, the candidates, and a checkpoint where the memory cannot roll back.
        params.n_seq_max = settings.n_candidates + 1 + model.has_recurrent_state
        params.n_threads = params.n_threads_batch = settings.n_threads
        params.kv_unified = True  # side sequences share the prefix's cells at no cost
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        params.type_k = params.type_v = settings.kv_type
        if settings.kv_type == lib.GGML_TYPE_F32:
            # Flash attention would cast the cache to F16 (llama-graph.cpp, build_attn_mha).
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        if eval_callback is not None:
            params.cb_eval = eval_callback.function
            params.cb_eval_user_data = eval_callback.user_data
        self._eval_callback = eval_callback
        context_handle = lib.llama_init_from_model(model.handle, params)
        if not context_handle:
            raise EngineError(
                f"cannot make a context of {settings.n_ctx} tokens ({native_error_cause()}); try a "
                "smaller --ctx"
            )
        self._own(context_handle, lib.llama_free)
        self.n_embd = model.n_embd
        self._logits_row = ctypes.c_float * model.n_vocab
        self.model = model
        self.n_ctx: int = lib.llama_n_ctx(context_handle)
        # A small n_ctx cuts n_batch, and one more token in a batch aborts the process.
        self.n_batch: int = lib.llama_n_batch(context_handle)
        self._batch = _TokenBatch(self.n_batch)
        self.n_candidates = settings.n_candidates
        self.checkpoint_sequence = settings.n_candidates + 1  # with a recurrent state alone
        self._is_steered = False

    def close(self) -> None:
        """Free the batch and the native context. Idempotent."""
        self._batch.close()
        super().close()

    def decode(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        sequence_ids: Sequence[int],
        *,
        n_outputs: int,
    ) -> None:
        """Evaluate one batch. n_outputs: its last rows, so many of them, get logits.

        None where nobody reads them: the output layer is a third of a small model. At most n_batch
        rows. Raises PromptTooLongError if the KV cache is full, else EngineError.
        """
        handle = self.handle
        self._batch.fill_inplace(token_ids, positions, sequence_ids, n_outputs=n_outputs)
        forget_native_errors()
        status = lib.llama_decode(handle, self._batch.handle)
        if status == _NO_KV_SLOT:
            raise PromptTooLongError(
                f"the context of {self.n_ctx} tokens is full; raise --ctx or start a new chat"
            )
        if status != 0:
            raise EngineError(
                f"llama.cpp failed to decode (status {status}: {native_error_cause()})"
            )

    # -- sequences ------------------------------------------------------------------------------

    def copy_sequence(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        """Let `target` share the cells of `source` at positions [start, end); -1 = open."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove_from_sequence(self, sequence: int, start: int = -1, end: int = -1) -> bool:
        """Take the cells at positions [start, end) out of a sequence.

        Returns False where the model's memory cannot do that (recurrent state).
        """
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, end))

    def clear(self) -> None:
        """Forget every sequence."""
        lib.llama_memory_clear(self._memory, True)

    # -- control vector -------------------------------------------------------------------------

    def set_control_vector(self, directions: NDArray[np.float32] | None) -> None:
        """Add `directions` to the residual stream of every later decode; None switches it off.

        directions: float32 (n_layer, n_embd), row L for the output of block L; row 0 must be zero,
        as llama.cpp cannot steer block 0 (llama-adapter.cpp). Costs a graph reserve at the next
        decode: switch per turn, never per token.
        """
        if directions is None:
            if self._is_steered:  # each call makes the next decode reserve its graph anew
                lib.llama_set_adapter_cvec(self.handle, None, 0, 0, 0, 0)
                self._is_steered = False
            return
        n_layer, n_embd = self.model.n_layer, self.n_embd
        if directions.shape != (n_layer, n_embd) or np.any(directions[0]):
            raise EngineError(
                f"control vector has shape {directions.shape}, expected ({n_layer}, {n_embd}) "
                "with a zero row for block 0"
            )
        # The whole buffer, always: a shorter one would leave an older vector's upper layers on.
        flat = np.ascontiguousarray(directions[1:], dtype=np.float32)
        status = lib.llama_set_adapter_cvec(
            self.handle,
            flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            flat.size,
            n_embd,
            1,
            n_layer - 1,
        )
        if status != 0:
            raise EngineError(f"llama.cpp refused the control vector (status {status})")
        self._is_steered = True

    @property
    def _memory(self) -> Any:
        return lib.llama_get_memory(self.handle)


class _TokenBatch(NativeObject):
    """Owns one llama_batch of token rows, each in one sequence."""

    def __init__(self, capacity: int) -> None:
        self._own(lib.llama_batch_init(capacity, 0, 1), lib.llama_batch_free)
        self._capacity = capacity
        batch = self.handle
        # Here, as each look at a field of the structure makes a new pointer.
        self._tokens, self._positions, self._sequences = batch.token, batch.pos, batch.seq_id
        self._n_sequences, self._logits = batch.n_seq_id, batch.logits

    def fill_inplace(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        sequence_ids: Sequence[int],
        *,
        n_outputs: int,
    ) -> None:
        n_tokens = len(token_ids)
        if not 0 < n_tokens <= self._capacity:
            raise EngineError(f"a batch of {n_tokens} tokens; expected 1 to {self._capacity}")
        self.handle.n_tokens = n_tokens
        for row, (token_id, position, sequence_id) in enumerate(
            zip(token_ids, positions, sequence_ids, strict=True)
        ):
            self._tokens[row] = token_id
            self._positions[row] = position
            self._n_sequences[row] = 1
            self._sequences[row][0] = sequence_id
            self._logits[row] = row >= n_tokens - n_outputs
