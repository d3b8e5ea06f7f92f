"""A tiny audio projector (`mmproj`) of llama.cpp's `qwen2a` kind: Whisper's encoder and a matrix.

The graph, in llama.cpp's tools/mtmd/models/whisper-enc.cpp: two convolutions over the mel
spectrum, learned positions, blocks, a mean over pairs, one linear layer. 30 s are 750 tokens.
"""

from __future__ import annotations

from pathlib import Path

from tests.tiny_models.random_weights import RandomWeights, add_file_type, gguf_output

_N_LAYER, _N_HEAD, _WIDTH, _N_FF = 1, 2, 32, 64
_N_MELS, _N_POSITIONS = 80, 1500


def write_tiny_hearing_projector(path: Path, *, seed: int = 0, n_embd: int = 64) -> Path:
    """Write a random projector in F32 and return its path. n_embd: the language model's width."""
    with gguf_output(path, "clip") as writer:
        writer.add_type("mmproj")
        writer.add_name("tiny-qwen2a")
        add_file_type(writer, "F32")
        writer.add_string("clip.projector_type", "qwen2a")
        writer.add_bool("clip.has_audio_encoder", True)
        for key, value in (
            ("embedding_length", _WIDTH),
            ("feed_forward_length", _N_FF),
            ("block_count", _N_LAYER),
            ("attention.head_count", _N_HEAD),
            ("projection_dim", n_embd),
            ("num_mel_bins", _N_MELS),
        ):
            writer.add_uint32(f"clip.audio.{key}", value)
        writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-5)
        weights = RandomWeights(writer, seed=seed, quantization="F32")
        for number, n_in in ((1, _N_MELS), (2, _WIDTH)):
            name = f"a.conv1d.{number}"
            deviation = 2 / (3 * n_in) ** 0.5
            weights.add(f"{name}.weight", weights.draw(name, (_WIDTH, n_in, 3), deviation))
            weights.add(f"{name}.bias", weights.draw(f"{name}.bias", (_WIDTH, 1), 0.1))
        name = "a.position_embd.weight"
        weights.add(name, weights.draw(name, (_N_POSITIONS, _WIDTH), 0.3))
        for layer_index in range(_N_LAYER):
            _add_block(weights, f"a.blk.{layer_index}")
        _add_norm(weights, "a.post_ln")
        _add_linear(weights, "mm.a.fc", n_embd, _WIDTH)
    return path


def _add_block(weights: RandomWeights, block: str) -> None:
    _add_norm(weights, f"{block}.ln1")
    _add_norm(weights, f"{block}.ln2")
    _add_linear(weights, f"{block}.attn_q", _WIDTH, _WIDTH)
    weights.add_matrix(f"{block}.attn_k.weight", _WIDTH, _WIDTH)  # Whisper's keys have no bias
    _add_linear(weights, f"{block}.attn_v", _WIDTH, _WIDTH)
    _add_linear(weights, f"{block}.attn_out", _WIDTH, _WIDTH)
    _add_linear(weights, f"{block}.ffn_up", _N_FF, _WIDTH)
    _add_linear(weights, f"{block}.ffn_down", _WIDTH, _N_FF)


def _add_norm(weights: RandomWeights, name: str) -> None:
    weights.add_vector(f"{name}.weight", _WIDTH, centre=1.0)
    weights.add_vector(f"{name}.bias", _WIDTH, centre=0.0)


def _add_linear(weights: RandomWeights, name: str, n_out: int, n_in: int) -> None:
    weights.add_matrix(f"{name}.weight", n_out, n_in)
    weights.add_vector(f"{name}.bias", n_out, centre=0.0)
