"""Tiny transformers: llama (the default model's architecture) and qwen2 (biases, NEOX RoPE)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from gguf import GGUFWriter

from tests.tiny_models.random_weights import (
    Quantization,
    RandomWeights,
    add_file_type,
    gguf_output,
)
from tests.tiny_models.vocabulary import CHATML, TinyVocabulary, tiny_vocabulary

# Logits of deviation 3 over 320 tokens: the best one has a probability of about 0.3, the best
# twenty nearly all of it. So sampling varies, and rounding does not change a greedy choice.
_LOGIT_DEVIATION = 3.0
# A control token's logit is near 0, and log(sum(exp(logits))) near 9: an end-of-sequence token
# comes about once in 10,000. Bytes that are not printable stay possible, and seldom.
_CONTROL_SHARE = 0.02
_UNPRINTABLE_SHARE = 0.5
# Above 1, so that what a block adds is as large as what it was given, and context matters.
_BLOCK_GAIN = 1.5


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """What a transformer's metadata say of its size."""

    architecture: Literal["llama", "qwen2"]
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx_train: int


def write_tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 4,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 128,
    n_ctx_train: int = 2048,
    quantization: Quantization = "F32",
    chat_template: str | None = CHATML,
    name: str = "tiny-llama",
    extra_vocab: tuple[str, ...] = (),
) -> Path:
    """Write a random llama-architecture model and return its path (750 kB in F32).

    n_embd and n_ff must be multiples of 32 for the quantized types.
    extra_vocab: pieces of text that become one token each; they follow the 320 usual tokens.
    """
    shape = TransformerShape("llama", name, n_layer, n_embd, n_head, n_head_kv, n_ff, n_ctx_train)
    return _write(path, shape, seed, quantization, chat_template, tiny_vocabulary(extra_vocab))


def write_tiny_qwen2(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 4,
    n_embd: int = 64,
    quantization: Quantization = "F32",
    chat_template: str | None = CHATML,
    name: str = "tiny-qwen2",
) -> Path:
    """Write a random qwen2-architecture model (4 heads, 2 of them for K and V); return its path."""
    shape = TransformerShape("qwen2", name, n_layer, n_embd, 4, 2, 2 * n_embd, 2048)
    return _write(path, shape, seed, quantization, chat_template, tiny_vocabulary())


def _write(
    path: Path,
    shape: TransformerShape,
    seed: int,
    quantization: Quantization,
    chat_template: str | None,
    vocabulary: TinyVocabulary,
) -> Path:
    with gguf_output(path, shape.architecture) as writer:
        add_metadata(writer, shape)
        add_file_type(writer, quantization)
        vocabulary.add_to(writer, chat_template)
        weights = RandomWeights(writer, seed=seed, quantization=quantization)
        add_token_embedding(weights, vocabulary, shape.n_embd)
        for layer_index in range(shape.n_layer):
            _add_block(weights, shape, f"blk.{layer_index}")
        add_output_head(weights, vocabulary, shape.n_embd)
    return path


def add_metadata(writer: GGUFWriter, shape: TransformerShape) -> None:
    """Write what llama.cpp needs to know of the shape."""
    writer.add_type("model")
    writer.add_name(shape.name)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_rope_freq_base(10_000.0)


def _add_block(weights: RandomWeights, shape: TransformerShape, block: str) -> None:
    n_embd, n_ff = shape.n_embd, shape.n_ff
    n_embd_kv = n_embd // shape.n_head * shape.n_head_kv
    weights.add_vector(f"{block}.attn_norm.weight", n_embd, centre=1.0)
    for part, n_out in (("q", n_embd), ("k", n_embd_kv), ("v", n_embd_kv)):
        weights.add_matrix(f"{block}.attn_{part}.weight", n_out, n_embd, gain=_BLOCK_GAIN)
        if shape.architecture == "qwen2":
            weights.add_vector(f"{block}.attn_{part}.bias", n_out, centre=0.0)
    weights.add_matrix(f"{block}.attn_output.weight", n_embd, n_embd)
    weights.add_vector(f"{block}.ffn_norm.weight", n_embd, centre=1.0)
    weights.add_matrix(f"{block}.ffn_gate.weight", n_ff, n_embd, gain=_BLOCK_GAIN)
    weights.add_matrix(f"{block}.ffn_up.weight", n_ff, n_embd, gain=_BLOCK_GAIN)
    weights.add_matrix(f"{block}.ffn_down.weight", n_embd, n_ff)


class OutputVocabulary(Protocol):
    """What the weights of a model need to know of its tokens; control tokens come first."""

    @property
    def tokens(self) -> tuple[str, ...]: ...

    @property
    def n_control(self) -> int: ...

    def is_printable(self, token_id: int) -> bool: ...


def add_token_embedding(weights: RandomWeights, vocabulary: OutputVocabulary, n_embd: int) -> None:
    """Queue one random direction per token: independent, so well apart."""
    name = "token_embd.weight"
    weights.add_quantized(name, weights.draw(name, (len(vocabulary.tokens), n_embd), 1.0))


def add_output_head(
    weights: RandomWeights,
    vocabulary: OutputVocabulary,
    n_embd: int,
    *,
    norm: str = "output_norm",
) -> None:
    """Queue the final norm and the output matrix, its rows scaled by the kind of token."""
    weights.add_vector(f"{norm}.weight", n_embd, centre=1.0)
    n_vocab = len(vocabulary.tokens)
    share = np.array(
        [1.0 if vocabulary.is_printable(i) else _UNPRINTABLE_SHARE for i in range(n_vocab)],
        dtype=np.float32,
    )
    share[: vocabulary.n_control] = _CONTROL_SHARE
    rows = weights.draw("output.weight", (n_vocab, n_embd), _LOGIT_DEVIATION / n_embd**0.5)
    weights.add_quantized("output.weight", rows * share[:, None])
