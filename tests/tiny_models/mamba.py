"""A tiny recurrent model: its memory is one state per sequence, so no part of it can be removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.tiny_models.language_model import add_output_head, add_token_embedding
from tests.tiny_models.random_weights import (
    Quantization,
    RandomWeights,
    add_file_type,
    gguf_output,
)
from tests.tiny_models.vocabulary import CHATML, tiny_vocabulary

_CONV_KERNEL = 4
_STATE_SIZE = 16  # llama.cpp's scan is written for Mamba's 16


def write_tiny_mamba(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 4,
    n_embd: int = 64,
    quantization: Quantization = "F32",
    chat_template: str | None = CHATML,
    name: str = "tiny-mamba",
) -> Path:
    """Write a random mamba-architecture model and return its path."""
    vocabulary = tiny_vocabulary()
    with gguf_output(path, "mamba") as writer:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_block_count(n_layer)
        writer.add_context_length(2048)
        writer.add_embedding_length(n_embd)
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(_CONV_KERNEL)
        writer.add_ssm_inner_size(2 * n_embd)
        writer.add_ssm_state_size(_STATE_SIZE)
        writer.add_ssm_time_step_rank(n_embd // 16)
        writer.add_layer_norm_rms_eps(1e-5)
        add_file_type(writer, quantization)
        vocabulary.add_to(writer, chat_template)
        weights = RandomWeights(writer, seed=seed, quantization=quantization)
        add_token_embedding(weights, vocabulary, n_embd)
        for layer_index in range(n_layer):
            _add_block(weights, f"blk.{layer_index}", n_embd)
        add_output_head(weights, vocabulary, n_embd)
    return path


def _add_block(weights: RandomWeights, block: str, n_embd: int) -> None:
    n_inner, n_rank = 2 * n_embd, n_embd // 16
    weights.add_vector(f"{block}.attn_norm.weight", n_embd, centre=1.0)
    weights.add_matrix(f"{block}.ssm_in.weight", 2 * n_inner, n_embd, gain=2.0)
    convolution = f"{block}.ssm_conv1d.weight"
    weights.add(convolution, weights.draw(convolution, (n_inner, _CONV_KERNEL), 0.5))
    weights.add_vector(f"{block}.ssm_conv1d.bias", n_inner, centre=0.0)
    weights.add_matrix(f"{block}.ssm_x.weight", n_rank + 2 * _STATE_SIZE, n_inner, gain=2.0)
    time_step = f"{block}.ssm_dt.weight"  # n_rank columns: too few for a quantization block
    weights.add(time_step, weights.draw(time_step, (n_inner, n_rank), 0.5))
    weights.add_vector(f"{block}.ssm_dt.bias", n_inner, centre=-2.0)
    # Mamba's own start: state n decays at rate n + 1. GGUF stores -exp(A_log).
    decay = -np.tile(np.arange(1, _STATE_SIZE + 1, dtype=np.float32), (n_inner, 1))
    weights.add(f"{block}.ssm_a", decay)
    weights.add_vector(f"{block}.ssm_d", n_inner, centre=1.0)
    weights.add_matrix(f"{block}.ssm_out.weight", n_embd, n_inner, gain=2.0)
