"""How much memory a model needs with these settings, part by part.

Exact are weights, cache and recurrent state: the sums that llama.cpp makes. The rest is measured
(llama-cpp-python 0.3.36, x86-64 Linux): docs/models.md says how far it is off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safesteer_edge.formats.gguf_file import GgufFile
from safesteer_edge.formats.gguf_header import KV_BLOCKS, GgufArray, KvType
from safesteer_edge.formats.model_file import read_model

# -- which layers keep a recurrent state, and how large it is --------------------------------------
# Sources: llama_hparams::n_embd_r and n_embd_s, and where is_recr_impl is set in src/models/, in
# llama.cpp.

# Recurrent but for every so many layers, four unless the file says otherwise.
_INTERVAL_ARCHITECTURES: Final = frozenset({"qwen3next", "qwen35", "qwen35moe", "minimax-01"})
_DEFAULT_INTERVAL: Final = 4
# Both in every layer, side by side.
_PARALLEL_ARCHITECTURES: Final = frozenset({"falcon-h1"})


def split_layers(
    file: GgufFile, prefix: str, kv_widths: list[int], n_embd: int
) -> list[tuple[int, int]]:
    """For each layer the numbers in the cache per token, and those of its recurrent state."""
    state = state_width(file, prefix, n_embd)
    if not state:
        return [(width, 0) for width in kv_widths]
    if prefix in _PARALLEL_ARCHITECTURES:
        return [(width, state) for width in kv_widths]
    flags = _recurrent_flags(file, prefix, kv_widths)
    return [
        (0, state) if is_recurrent else (width, 0)
        for width, is_recurrent in zip(kv_widths, flags, strict=True)
    ]


def state_width(file: GgufFile, prefix: str, n_embd: int) -> int:
    """Numbers of recurrent state, a layer and sequence: the convolution's and the scan's."""

    def value(key: str) -> int:
        return file.integer(f"{prefix}.{key}", 0) or 0

    if head := value("wkv.head_size"):
        return n_embd * (value("token_shift_count") or 2) + n_embd * head
    if cached := value("shortconv.l_cache"):
        return n_embd * (cached - 1)
    inner, state = value("ssm.inner_size"), value("ssm.state_size")
    convolution = max(0, value("ssm.conv_kernel") - 1)
    return convolution * (inner + 2 * value("ssm.group_count") * state) + inner * state


def _recurrent_flags(file: GgufFile, prefix: str, kv_widths: list[int]) -> list[bool]:
    n_layer = len(kv_widths)
    said = per_layer(file, f"{prefix}.attention.recurrent_layers", n_layer)
    if said:
        return [bool(flag) for flag in said]
    if prefix in _INTERVAL_ARCHITECTURES:
        interval = file.integer(f"{prefix}.full_attention_interval") or _DEFAULT_INTERVAL
        return [(index + 1) % interval != 0 for index in range(n_layer)]
    if prefix.startswith("nemotron_h"):  # a third kind of layer has neither
        widths = per_layer(file, f"{prefix}.feed_forward_length", n_layer) or [0] * n_layer
        return [not kv and not ff for kv, ff in zip(kv_widths, widths, strict=True)]
    return [width == 0 for width in kv_widths]


def per_layer(file: GgufFile, key: str, n_layer: int) -> list[int]:
    """A value that may be given once or per layer, for each layer; [] if it is missing."""
    value = file.metadata.get(key)
    if isinstance(value, GgufArray):
        values = [int(each) for each in file.numbers(key).tolist()]
        return values[:n_layer] + [0] * (n_layer - len(values))
    number = file.integer(key)
    return [] if number is None else [number] * n_layer


# -- what a model's file says about the memory that it needs. Reads the header alone ---------------
# Sources: llama_model::load_tensors, llama_kv_cache and llama_hparams::n_embd_k_gqa in
# llama.cpp's src/.

_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = "token_embd."


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block. weight_bytes: of its tensors. kv_width: numbers in the cache a token, K and V.

    state_width: numbers of its recurrent state, a sequence; most such layers cache nothing.
    """

    weight_bytes: int
    kv_width: int
    state_width: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the arithmetic needs to know of a model.

    input_bytes: the token embedding, which stays on the CPU. output_bytes: what follows the blocks;
    a tied output is the embedding once more, which a GPU then needs a copy of. sliding_window: of
    some layers, in tokens, 0 for none; the runtime keeps the whole context for them all the same,
    so that a conversation can go back.
    """

    name: str
    layers: tuple[LayerShape, ...]
    input_bytes: int
    output_bytes: int
    has_tied_output: bool
    n_embd: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    sliding_window: int
    key_widths: tuple[int, ...]

    @property
    def weight_bytes(self) -> int:
        """All tensors, once."""
        return self.input_bytes + self.output_bytes + sum(x.weight_bytes for x in self.layers)

    @property
    def kv_width(self) -> int:
        """Numbers that one token takes in the cache, in all layers."""
        return sum(layer.kv_width for layer in self.layers)


def read_model_shape(model: Path | GgufFile) -> ModelShape:
    """The shape of a model that `check_language_model` has accepted, from its path or its header.

    Takes 20 ms where the header has to be read. Raises ModelFileError.
    """
    file = model if isinstance(model, GgufFile) else read_model(model)
    prefix = file.architecture
    n_layer = file.integer(f"{prefix}.block_count", 0) or 0
    n_embd = file.integer(f"{prefix}.embedding_length", 0) or 0
    weights = [0] * n_layer
    input_bytes = output_bytes = 0
    for tensor in file.tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) < n_layer:
            weights[int(block[1])] += tensor.size_bytes
        elif tensor.name.startswith(_INPUT):
            input_bytes += tensor.size_bytes
        else:
            output_bytes += tensor.size_bytes
    embedding = file.tensor("token_embd.weight")
    heads = per_layer(file, f"{prefix}.attention.head_count", n_layer)
    kv_heads = per_layer(file, f"{prefix}.attention.head_count_kv", n_layer) or heads
    key_width = _key_width(file, prefix, n_embd, heads)
    value_width = file.integer(f"{prefix}.attention.value_length") or key_width
    widths = [n * (key_width + value_width) for n in kv_heads or [0] * n_layer]
    widths = _with_latent_attention(file, prefix, widths)
    # The last blocks may guess tokens ahead: they are loaded, but play no part in decoding.
    n_used = n_layer - min(n_layer, file.integer(f"{prefix}.nextn_predict_layers", 0) or 0)
    # And the last of the others may use the cache of earlier ones.
    n_own = n_used - min(n_used, file.integer(f"{prefix}.attention.shared_kv_layers", 0) or 0)
    split = split_layers(file, prefix, widths, n_embd)
    return ModelShape(
        name=file.path.name,
        layers=tuple(
            LayerShape(weight, width if index < n_own else 0, state if index < n_used else 0)
            for index, (weight, (width, state)) in enumerate(zip(weights, split, strict=True))
        ),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        has_tied_output=file.tensor("output.weight") is None,
        n_embd=n_embd,
        n_ff=_widest_feed_forward(file, prefix, n_layer),
        n_vocab=embedding.shape[1] if embedding is not None else 0,
        n_ctx_train=file.integer(f"{prefix}.context_length", 0) or 0,
        sliding_window=file.integer(f"{prefix}.attention.sliding_window", 0) or 0,
        key_widths=(key_width, value_width),
    )


def _key_width(file: GgufFile, prefix: str, n_embd: int, heads: list[int]) -> int:
    """Width of one head's key; the larger one where layers with a window have another."""
    widest = max(heads, default=0)
    width = file.integer(f"{prefix}.attention.key_length")
    if width is None:
        width = n_embd // widest if widest else 0
    return max(width, file.integer(f"{prefix}.attention.key_length_swa", 0) or 0)


def _with_latent_attention(file: GgufFile, prefix: str, widths: list[int]) -> list[int]:
    """DeepSeek's attention caches one narrow vector a token and layer instead of heads."""
    rank = file.integer(f"{prefix}.attention.kv_lora_rank", 0) or 0
    if not rank or file.integer(f"{prefix}.attention.key_length_mla") is None:
        return widths
    narrow = rank + (file.integer(f"{prefix}.rope.dimension_count", 0) or 0)
    return [min(width, narrow) for width in widths]


def _widest_feed_forward(file: GgufFile, prefix: str, n_layer: int) -> int:
    dense = max(per_layer(file, f"{prefix}.feed_forward_length", n_layer), default=0)
    n_used = max(per_layer(file, f"{prefix}.expert_used_count", n_layer), default=0)
    expert = file.integer(f"{prefix}.expert_feed_forward_length", 0) or (dense if n_used else 0)
    return max(dense, n_used * expert)


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
