"""The llama architecture's forward pass in NumPy: what llama.cpp must compute, written again.

Knows the file format (through the gguf package) and nothing of llama.cpp's code or of ours. There
is no KV cache: each call computes the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NumpyForward:
    """The states of one sequence, float32.

    block_outputs: (n_layer, n_tokens, n_embd), the residual stream after each block, the control
        vector included (llama.cpp's `l_out-L`).
    final_norm: (n_tokens, n_embd), what the output matrix is applied to.
    logits: (n_tokens, n_vocab).
    """

    block_outputs: Float32Array
    final_norm: Float32Array
    logits: Float32Array


class NumpyLlama:
    """A llama-architecture GGUF file, dequantized into memory: for tiny models.

    Raises ValueError if the file is of another architecture.
    """

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        architecture = _value(reader, "general.architecture")
        if architecture != "llama":
            raise ValueError(f"expected a 'llama' model, {str(path)!r} is {architecture!r}")
        self.n_layer = int(_value(reader, "llama.block_count"))
        self.n_embd = int(_value(reader, "llama.embedding_length"))
        self.n_head = int(_value(reader, "llama.attention.head_count"))
        self.n_head_kv = int(_value(reader, "llama.attention.head_count_kv"))
        self._norm_epsilon = np.float32(_value(reader, "llama.attention.layer_norm_rms_epsilon"))
        self._rope_base = float(_value(reader, "llama.rope.freq_base"))
        self._weights: dict[str, Float32Array] = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            for tensor in reader.tensors
        }

    def forward(
        self,
        token_ids: Sequence[int],
        control_vector: Float32Array | None = None,
        *,
        steered_from: int = 0,
    ) -> NumpyForward:
        """Compute one sequence of tokens from position 0.

        control_vector: (n_layer, n_embd), row L added to the output of block L; row 0 is ignored,
            as llama.cpp cannot steer block 0. Positions before `steered_from` are left alone.
        """
        embeddings = self._weights["token_embd.weight"][np.asarray(token_ids, dtype=np.int64)]
        return self.forward_embeddings(embeddings, control_vector, steered_from=steered_from)

    def forward_embeddings(
        self,
        embeddings: Float32Array,
        control_vector: Float32Array | None = None,
        *,
        steered_from: int = 0,
    ) -> NumpyForward:
        """Compute one sequence of input embeddings (n_tokens, n_embd): tokens' or an image's."""
        residual = embeddings
        block_outputs: list[Float32Array] = []
        for layer_index in range(self.n_layer):
            residual = self._block(layer_index, residual)
            if control_vector is not None and layer_index > 0:
                residual = residual.copy()
                residual[steered_from:] += control_vector[layer_index]
            block_outputs.append(residual)
        final_norm = self._rms_norm(residual, "output_norm")
        output = self._weights.get("output.weight", self._weights["token_embd.weight"])
        return NumpyForward(np.stack(block_outputs), final_norm, final_norm @ output.T)

    def _block(self, layer_index: int, residual: Float32Array) -> Float32Array:
        block = f"blk.{layer_index}"
        residual = residual + self._attention(block, self._rms_norm(residual, f"{block}.attn_norm"))
        normed = self._rms_norm(residual, f"{block}.ffn_norm")
        gate = self._linear(normed, f"{block}.ffn_gate")
        swish = gate / (np.float32(1) + np.exp(-gate))
        inner = swish * self._linear(normed, f"{block}.ffn_up")
        return residual + self._linear(inner, f"{block}.ffn_down")

    def _attention(self, block: str, normed: Float32Array) -> Float32Array:
        """Causal grouped-query attention: each K/V head serves n_head / n_head_kv heads."""
        query = self._rope(self._heads(normed, f"{block}.attn_q", self.n_head))
        key = self._rope(self._heads(normed, f"{block}.attn_k", self.n_head_kv))
        value = self._heads(normed, f"{block}.attn_v", self.n_head_kv)
        n_shared = self.n_head // self.n_head_kv
        key, value = np.repeat(key, n_shared, axis=0), np.repeat(value, n_shared, axis=0)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(np.float32(query.shape[-1]))
        future = np.triu(np.ones(scores.shape[1:], dtype=bool), k=1)
        scores[:, future] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        joined = (weights @ value).transpose(1, 0, 2).reshape(normed.shape[0], -1)
        return self._linear(joined, f"{block}.attn_output")

    def _heads(self, normed: Float32Array, name: str, n_head: int) -> Float32Array:
        """Project to (n_head, n_tokens, head width)."""
        return self._linear(normed, name).reshape(normed.shape[0], n_head, -1).transpose(1, 0, 2)

    def _rope(self, heads: Float32Array) -> Float32Array:
        """Rotate neighbouring pairs (2i, 2i+1) by position · base^(-2i/width): ggml's NORM type."""
        _, n_tokens, width = heads.shape
        frequencies = self._rope_base ** (-np.arange(0, width, 2) / width)
        angles = np.arange(n_tokens)[:, None] * frequencies
        cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        even, odd = heads[..., 0::2], heads[..., 1::2]
        rotated = np.empty_like(heads)
        rotated[..., 0::2] = even * cosine - odd * sine
        rotated[..., 1::2] = even * sine + odd * cosine
        return rotated

    def _rms_norm(self, states: Float32Array, name: str) -> Float32Array:
        mean_square = np.mean(states**2, axis=-1, keepdims=True)
        return states / np.sqrt(mean_square + self._norm_epsilon) * self._weights[f"{name}.weight"]

    def _linear(self, states: Float32Array, name: str) -> Float32Array:
        return states @ self._weights[f"{name}.weight"].T


def _value(reader: GGUFReader, key: str) -> str | int | float:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF file has no {key!r}")
    return field.contents()
