"""What a model's file says about the memory that it needs. Reads the header alone.

Sources: llama_model::load_tensors, llama_kv_cache and llama_hparams::n_embd_k_gqa in llama.cpp's
src/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.formats.gguf_file import GgufFile, read_gguf
from safesteer_edge.memory.recurrent_layers import per_layer, split_layers

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
        name=path.name,
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
