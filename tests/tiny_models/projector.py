"""A tiny vision projector (`mmproj`) of llama.cpp's `internvl` kind, the default model's own.

The graph, in llama.cpp's tools/mtmd/models/internvl.cpp: patches, a class token after them,
learned positions, blocks with LayerScale, 2x2 pixel shuffle, LayerNorm, two linear layers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from tests.tiny_models.random_weights import RandomWeights, add_file_type, gguf_output

_N_LAYER = 2
_N_HEAD = 2
_SHUFFLE = 2  # 2x2 patches make one image token


def write_tiny_projector(
    path: Path,
    *,
    seed: int = 0,
    n_embd: int = 64,
    image_size: int = 56,
    patch_size: int = 14,
    n_embd_vision: int = 32,
    name: str = "tiny-internvl",
    last_layer: NDArray[np.float32] | None = None,
) -> Path:
    """Write a random projector in F32 and return its path.

    last_layer: float32 (n_embd, n_embd), the last linear layer, without a bias; None: random.
    n_embd: the language model's width, which the projector feeds.
    image_size must be a multiple of 2 · patch_size. An image that fits into image_size ×
    image_size becomes (image_size / patch_size / 2)² tokens (4 by default), between <img> and
    </img>; a larger one becomes twice as many, as llama.cpp puts one tile before the overview.
    """
    with gguf_output(path, "clip") as writer:
        writer.add_type("mmproj")
        writer.add_name(name)
        add_file_type(writer, "F32")
        _add_metadata(writer, n_embd, n_embd_vision, image_size, patch_size)
        weights = RandomWeights(writer, seed=seed, quantization="F32")
        _add_patches(weights, n_embd_vision, (image_size // patch_size) ** 2, patch_size)
        for layer_index in range(_N_LAYER):
            _add_block(weights, f"v.blk.{layer_index}", n_embd_vision)
        _add_projection(weights, n_embd_vision * _SHUFFLE**2, n_embd, last_layer)
    return path


def _add_metadata(
    writer: GGUFWriter, n_embd: int, n_embd_vision: int, image_size: int, patch_size: int
) -> None:
    writer.add_string("clip.projector_type", "internvl")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    for key, value in (
        ("image_size", image_size),
        ("patch_size", patch_size),
        ("embedding_length", n_embd_vision),
        ("feed_forward_length", 2 * n_embd_vision),
        ("block_count", _N_LAYER),
        ("attention.head_count", _N_HEAD),
        ("projection_dim", n_embd),
        ("projector.scale_factor", _SHUFFLE),
        ("preproc_min_tiles", 1),
        ("preproc_max_tiles", 1),
    ):
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])


def _add_patches(weights: RandomWeights, n_embd: int, n_patches: int, patch_size: int) -> None:
    name = "v.patch_embd.weight"
    deviation = 2.0 / (3 * patch_size**2) ** 0.5
    weights.add(name, weights.draw(name, (n_embd, 3, patch_size, patch_size), deviation))
    weights.add_vector("v.patch_embd.bias", n_embd, centre=0.0)
    weights.add_vector("v.class_embd", n_embd, centre=0.0, deviation=0.5)
    name = "v.position_embd.weight"  # the class token's position comes last
    weights.add(name, weights.draw(name, (n_patches + 1, n_embd), 0.3))


def _add_linear(weights: RandomWeights, name: str, n_out: int, n_in: int) -> None:
    weights.add_matrix(f"{name}.weight", n_out, n_in)
    weights.add_vector(f"{name}.bias", n_out, centre=0.0)


def _add_norm(weights: RandomWeights, name: str, size: int) -> None:
    weights.add_vector(f"{name}.weight", size, centre=1.0)
    weights.add_vector(f"{name}.bias", size, centre=0.0)


def _add_block(weights: RandomWeights, block: str, n_embd: int) -> None:
    _add_norm(weights, f"{block}.ln1", n_embd)
    for part in ("q", "k", "v", "out"):
        _add_linear(weights, f"{block}.attn_{part}", n_embd, n_embd)
    weights.add_vector(f"{block}.ls1.weight", n_embd, centre=0.5)
    _add_norm(weights, f"{block}.ln2", n_embd)
    _add_linear(weights, f"{block}.ffn_up", 2 * n_embd, n_embd)
    _add_linear(weights, f"{block}.ffn_down", n_embd, 2 * n_embd)
    weights.add_vector(f"{block}.ls2.weight", n_embd, centre=0.5)


def _add_projection(
    weights: RandomWeights, n_shuffled: int, n_embd: int, last_layer: NDArray[np.float32] | None
) -> None:
    _add_norm(weights, "mm.model.mlp.0", n_shuffled)
    _add_linear(weights, "mm.model.mlp.1", n_embd, n_shuffled)
    if last_layer is not None:
        weights.add_quantized("mm.model.mlp.3.weight", last_layer)
        weights.add("mm.model.mlp.3.bias", np.zeros(n_embd, dtype=np.float32))
        return
    # Gelu halves the deviation of its input, more or less; token embeddings have deviation 1.
    weights.add_matrix("mm.model.mlp.3.weight", n_embd, n_embd, gain=1.7)
    weights.add_vector("mm.model.mlp.3.bias", n_embd, centre=0.0)
