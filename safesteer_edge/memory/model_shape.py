"""What a model's file says about the memory that it needs. Reads the header alone.

Sources: llama_model::load_tensors, llama_kv_cache and llama_hparams (n_embd_k_gqa, n_embd_r,
n_embd_s) in llama.cpp's src/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.formats.gguf_file import GgufArray, GgufFile, read_gguf

_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = "token_embd."


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block. weight_bytes: of its tensors. kv_width: numbers in the cache a token, K and V.

    state_width: numbers of its recurrent state, a sequence; then it caches nothing per token.
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


def read_model_shape(path: Path) -> ModelShape:
    """Read a file that `check_language_model` has accepted. Takes 20 ms. Raises ModelFileError."""
    file = read_gguf(path)
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
    heads = _per_layer(file, f"{prefix}.attention.head_count", n_layer)
    kv_heads = _per_layer(file, f"{prefix}.attention.head_count_kv", n_layer) or heads
    key_width = _key_width(file, prefix, n_embd, heads)
    value_width = file.integer(f"{prefix}.attention.value_length") or key_width
    widths = [n * (key_width + value_width) for n in kv_heads or [0] * n_layer]
    widths = _with_latent_attention(file, prefix, widths)
    n_shared = file.integer(f"{prefix}.attention.shared_kv_layers", 0) or 0
    n_own = n_layer - min(n_shared, n_layer)  # the last layers may use the cache of earlier ones
    state_width = _state_width(file, prefix, n_embd)
    return ModelShape(
        name=path.name,
        layers=tuple(
            LayerShape(weight, width if index < n_own else 0, 0 if width else state_width)
            for index, (weight, width) in enumerate(zip(weights, widths, strict=True))
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


def _state_width(file: GgufFile, prefix: str, n_embd: int) -> int:
    """Numbers of recurrent state of a layer and sequence: the convolution's and the scan's."""

    def value(key: str) -> int:
        return file.integer(f"{prefix}.{key}", 0) or 0

    if head := value("wkv.head_size"):
        return n_embd * (value("token_shift_count") or 2) + n_embd * head
    if cached := value("shortconv.l_cache"):
        return n_embd * (cached - 1)
    inner, state = value("ssm.inner_size"), value("ssm.state_size")
    convolution = max(0, value("ssm.conv_kernel") - 1)
    return convolution * (inner + 2 * value("ssm.group_count") * state) + inner * state


def _widest_feed_forward(file: GgufFile, prefix: str, n_layer: int) -> int:
    dense = max(_per_layer(file, f"{prefix}.feed_forward_length", n_layer), default=0)
    n_used = max(_per_layer(file, f"{prefix}.expert_used_count", n_layer), default=0)
    expert = file.integer(f"{prefix}.expert_feed_forward_length", 0) or (dense if n_used else 0)
    return max(dense, n_used * expert)


def _per_layer(file: GgufFile, key: str, n_layer: int) -> list[int]:
    """A value that may be given once or per layer, for each layer; [] if it is missing."""
    value = file.metadata.get(key)
    if isinstance(value, GgufArray):
        values = [int(each) for each in file.numbers(key).tolist()]
        return values[:n_layer] + [0] * (n_layer - len(values))
    number = file.integer(key)
    return [] if number is None else [number] * n_layer
