"""Tensors of a family's blocks: names and shapes, and random values that suit each name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.tiny_models.random_weights import RandomWeights

N_EMBD, N_HEAD, N_HEAD_KV, N_FF = 64, 4, 2, 96
HEAD_WIDTH = N_EMBD // N_HEAD
N_EMBD_KV = HEAD_WIDTH * N_HEAD_KV

_INWARD = ("attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_gate", "ffn_up", "ssm_in", "in_proj")
_INWARD_GAIN = 1.5  # above 1, so that what a block adds counts beside what it was given


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name below its block, and its shape in NumPy order: (n_out, n_in)."""

    name: str
    shape: tuple[int, ...]


Tensors = Iterator[Tensor]
BlockTensors = Callable[[int], Tensors]


def norms(*names: str, width: int = N_EMBD) -> Tensors:
    """Norms without biases."""
    for name in names:
        yield Tensor(f"{name}.weight", (width,))


def linear(name: str, n_out: int, n_in: int = N_EMBD, *, has_bias: bool = False) -> Tensors:
    """A matrix, and its bias."""
    yield Tensor(f"{name}.weight", (n_out, n_in))
    if has_bias:
        yield Tensor(f"{name}.bias", (n_out,))


def attention(*, has_bias: bool = False, head_norms: bool = False) -> Tensors:
    """Grouped-query attention with separate matrices."""
    for part, n_out in (("q", N_EMBD), ("k", N_EMBD_KV), ("v", N_EMBD_KV)):
        yield from linear(f"attn_{part}", n_out, has_bias=has_bias)
    yield from linear("attn_output", N_EMBD)
    if head_norms:
        yield from norms("attn_q_norm", "attn_k_norm", width=HEAD_WIDTH)


def feed_forward() -> Tensors:
    """A gated feed-forward part."""
    yield from linear("ffn_gate", N_FF)
    yield from linear("ffn_up", N_FF)
    yield from linear("ffn_down", N_EMBD, N_FF)


def experts(n_experts: int, n_ff: int, *, has_bias: bool = False) -> Tensors:
    """A router and its experts."""
    yield from linear("ffn_gate_inp", n_experts, has_bias=has_bias)
    for part, n_out, n_in in (("gate", n_ff, N_EMBD), ("up", n_ff, N_EMBD), ("down", N_EMBD, n_ff)):
        yield Tensor(f"ffn_{part}_exps.weight", (n_experts, n_out, n_in))
        if has_bias:
            yield Tensor(f"ffn_{part}_exps.bias", (n_experts, n_out))


def mamba2(n_inner: int, n_state: int, n_groups: int, n_heads: int, kernel: int) -> Tensors:
    """A Mamba-2 mixer."""
    n_conv = n_inner + 2 * n_groups * n_state
    yield from linear("ssm_in", n_inner + n_conv + n_heads)
    yield Tensor("ssm_conv1d.weight", (n_conv, kernel))
    yield Tensor("ssm_conv1d.bias", (n_conv,))
    yield Tensor("ssm_dt.bias", (n_heads,))
    yield Tensor("ssm_a", (n_heads, 1))
    yield Tensor("ssm_d", (n_heads, 1))
    yield Tensor("ssm_norm.weight", (n_groups, n_inner // n_groups))
    yield from linear("ssm_out", N_EMBD, n_inner)


def add_tensor(weights: RandomWeights, name: str, shape: tuple[int, ...]) -> None:
    """Queue a tensor with values that suit its name: all in F32, as these files are tiny."""
    weights.add(name, _values(weights, name, shape))


def _values(weights: RandomWeights, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind == "ssm_a":  # rates of decay
        return -np.abs(1 + weights.draw(name, shape, 0.5))
    if kind == "ssm_d" or kind.endswith("norm"):
        return 1 + weights.draw(name, shape, 0.1)
    if name.endswith("ssm_dt.bias"):
        return -2 + weights.draw(name, shape, 0.1)
    if name.endswith(".bias") or len(shape) == 1:
        return weights.draw(name, shape, 0.1)
    if "conv" in name:
        return weights.draw(name, shape, 0.5)
    gain = _INWARD_GAIN if kind.removesuffix("_exps") in _INWARD else 1.0
    return weights.draw(name, shape, gain / shape[-1] ** 0.5)
