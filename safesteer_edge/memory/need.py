"""How much memory a model needs with these settings, part by part.

Exact are weights, cache and recurrent state: the sums that llama.cpp makes. The rest is measured
(llama-cpp-python 0.3.36, x86-64 Linux): docs/models.md says how far it is off.
"""

from __future__ import annotations

from dataclasses import dataclass

from safesteer_edge.memory.kv_type import KV_BLOCKS, KvType
from safesteer_edge.memory.model_shape import ModelShape

N_CTX_STEP = 256  # llama.cpp rounds a context up to a multiple of it
MIN_N_CTX = 256

_MIB = 1 << 20
_F32_BYTES = 4
_PROCESS_BYTES = 72 * _MIB  # Python, NumPy and llama.cpp themselves
_GUARD_BYTES = 50 * _MIB  # ONNX Runtime with a linear probe
# Buffers of one batch that live at the same time in a block, as multiples of n_ff and n_embd.
_N_FF_BUFFERS, _N_EMBD_BUFFERS = 3.0, 4.5
_MASK_BYTES = 2  # a token and cell, F16


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What the need depends on besides the model. n_sequences: the conversation and candidates."""

    n_ctx: int
    kv_type: KvType = "f16"
    n_batch: int = 512
    n_sequences: int = 1
    has_guard: bool = False


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, part by part. logits: reserved on a GPU, but hardly touched on a CPU."""

    weights: int
    kv: int
    state: int
    projector: int
    output: int
    compute: int
    logits: int
    process: int

    @property
    def exact(self) -> int:
        """What is certainly needed: without this much it cannot run."""
        return self.weights + self.kv + self.state + self.projector

    @property
    def total(self) -> int:
        """All of it, on a CPU."""
        return self.exact + self.output + self.compute + self.process


def memory_need(
    model: ModelShape, settings: MemorySettings, projector_bytes: int = 0
) -> MemoryNeed:
    """The arithmetic. projector_bytes: size of its file, 0 for none."""
    n_ctx = padded_n_ctx(settings.n_ctx)
    n_state = sum(layer.state_width for layer in model.layers)
    # A recurrent state is kept once more, as a checkpoint.
    n_states = settings.n_sequences + 1 if n_state else 0
    n_wide = _N_FF_BUFFERS * model.n_ff + _N_EMBD_BUFFERS * model.n_embd
    return MemoryNeed(
        weights=model.weight_bytes,
        kv=kv_bytes(model.kv_width, settings.kv_type) * n_ctx,
        state=n_state * n_states * _F32_BYTES,
        projector=projector_bytes,
        output=settings.n_sequences * (model.n_vocab + model.n_embd) * _F32_BYTES,
        compute=int(settings.n_batch * (_F32_BYTES * n_wide + _MASK_BYTES * n_ctx)),
        logits=settings.n_batch * model.n_vocab * _F32_BYTES,
        process=_PROCESS_BYTES + (_GUARD_BYTES if settings.has_guard else 0),
    )


def padded_n_ctx(n_ctx: int) -> int:
    """Cells of the cache that llama.cpp makes for a context of so many tokens."""
    return -(-n_ctx // N_CTX_STEP) * N_CTX_STEP


def kv_bytes(n_numbers: int, kv_type: KvType) -> int:
    """Bytes that so many numbers take in a cache of this type."""
    block_bytes, block_numbers = KV_BLOCKS[kv_type]
    return n_numbers * block_bytes // block_numbers


def fits_blocks(model: ModelShape, kv_type: KvType) -> bool:
    """True if the model's heads are whole blocks of the type; llama.cpp refuses others."""
    return all(width % KV_BLOCKS[kv_type][1] == 0 for width in model.key_widths)
