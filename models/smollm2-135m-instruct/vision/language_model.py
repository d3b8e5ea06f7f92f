"""SmolLM2 in PyTorch, frozen, with the weights of the very GGUF file that llama.cpp runs.

The projector is trained against the quantized model's own (dequantized) weights, so that what it
learns fits what will read it. Knows the llama architecture and nothing of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    rope_base: float
    norm_epsilon: float


class LanguageModel(nn.Module):
    """A llama-architecture model that reads embeddings; no KV cache, no gradient to its weights."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        super().__init__()
        reader = GGUFReader(path)

        def value(key: str) -> float:
            field = reader.get_field(f"llama.{key}")
            if field is None:
                raise ValueError(
                    f"{str(path)!r} has no llama.{key}: not a llama-architecture model"
                )
            return field.contents()

        self.shape = Shape(
            n_layer=int(value("block_count")),
            n_embd=int(value("embedding_length")),
            n_head=int(value("attention.head_count")),
            n_head_kv=int(value("attention.head_count_kv")),
            rope_base=float(value("rope.freq_base")),
            norm_epsilon=float(value("attention.layer_norm_rms_epsilon")),
        )
        for tensor in reader.tensors:
            weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            self.register_buffer(tensor.name.replace(".", "_"), weight.to(dtype), persistent=False)
        self.token_embeddings: Tensor = self.get_buffer("token_embd_weight")  # (n_vocab, n_embd)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Final states, after the last norm: (n_batch, n_tokens, n_embd) to the same shape."""
        cosine, sine = self._rotations(embeddings)
        states = embeddings
        for layer in range(self.shape.n_layer):
            states = states + self._attention(
                layer, self._norm(states, f"blk_{layer}_attn_norm"), cosine, sine
            )
            normed = self._norm(states, f"blk_{layer}_ffn_norm")
            gate = F.silu(self._linear(normed, f"blk_{layer}_ffn_gate"))
            inner = gate * self._linear(normed, f"blk_{layer}_ffn_up")
            states = states + self._linear(inner, f"blk_{layer}_ffn_down")
        return self._norm(states, "output_norm")

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits (…, n_vocab) of final states."""
        return states @ self.token_embeddings.T

    def _attention(self, layer: int, normed: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        shape = self.shape
        n_batch, n_tokens, _ = normed.shape

        def heads(name: str, n_head: int) -> Tensor:
            projected = self._linear(normed, f"blk_{layer}_attn_{name}")
            return projected.view(n_batch, n_tokens, n_head, -1).transpose(1, 2)

        query = _rotate(heads("q", shape.n_head), cosine, sine)
        key = _rotate(heads("k", shape.n_head_kv), cosine, sine)
        n_shared = shape.n_head // shape.n_head_kv
        key, values = key.repeat_interleave(n_shared, 1), heads("v", shape.n_head_kv)
        mixed = F.scaled_dot_product_attention(
            query, key, values.repeat_interleave(n_shared, 1), is_causal=True
        )
        return self._linear(mixed.transpose(1, 2).reshape(normed.shape), f"blk_{layer}_attn_output")

    def _rotations(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        width = self.shape.n_embd // self.shape.n_head
        frequencies = self.shape.rope_base ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(embeddings.shape[1])[:, None] * frequencies
        return angles.cos().to(embeddings), angles.sin().to(embeddings)

    def _norm(self, states: Tensor, name: str) -> Tensor:
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.shape.norm_epsilon)
        return (wide * scale).to(states.dtype) * self.get_buffer(f"{name}_weight")

    def _linear(self, states: Tensor, name: str) -> Tensor:
        return states @ self.get_buffer(f"{name}_weight").T


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate neighbouring pairs, as ggml's NORM rope does on weights in GGUF order."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)
