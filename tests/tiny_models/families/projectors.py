"""Tiny projectors (`mmproj`) of the kinds that feed the families, in F32.

Required metadata and tensors: clip_model_loader in llama.cpp's tools/mtmd/clip.cpp, and the graphs
in tools/mtmd/models/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGUFWriter

from tests.tiny_models.families.family import ProjectorKind
from tests.tiny_models.families.tensors import N_EMBD, Tensor, Tensors, add_tensor
from tests.tiny_models.projector import write_tiny_projector
from tests.tiny_models.random_weights import RandomWeights, add_file_type, gguf_output

_WIDTH, _N_FF, _N_LAYER, _N_HEAD = 32, 64, 2, 2
_MERGE = 2  # 2x2 patches make one image token


@dataclass(frozen=True, slots=True)
class _Kind:
    """What differs between the kinds.

    image_size: of the fixed size, or the reference size where sizes vary. outside: tensors outside
    the blocks. values: numbers of metadata below `clip.vision.`.
    """

    image_size: int
    patch_size: int
    outside: Callable[[_Kind], Tensors]
    values: Mapping[str, int] = field(default_factory=dict)
    has_fused_attention: bool = False

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


def write_projector(
    path: Path, kind: ProjectorKind, *, n_deepstack: int = 0, seed: int = 0
) -> Path:
    """Write a random projector that feeds the families' models, and return its path.

    n_deepstack: paths of `qwen3vl_merger` that feed the model's first blocks beside the main one.
    """
    if kind == "internvl":
        return write_tiny_projector(path, seed=seed, n_embd=N_EMBD)
    shape = _KINDS[kind]
    with gguf_output(path, "clip") as writer:
        writer.add_type("mmproj")
        writer.add_name(f"tiny-{kind}")
        add_file_type(writer, "F32")
        _add_metadata(writer, kind, shape)
        weights = RandomWeights(writer, seed=seed, quantization="F32")
        for tensor in shape.outside(shape):
            _add(weights, tensor)
        for layer_index in range(_N_LAYER):
            for tensor in _block(shape):
                _add(weights, Tensor(f"v.blk.{layer_index}.{tensor.name}", tensor.shape))
        for layer_index in range(n_deepstack):
            for tensor in _deepstack(layer_index):
                _add(weights, tensor)
    return path


def _add_metadata(writer: GGUFWriter, kind: ProjectorKind, shape: _Kind) -> None:
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "embedding_length": _WIDTH,
        "feed_forward_length": _N_FF,
        "block_count": _N_LAYER,
        "attention.head_count": _N_HEAD,
        "projection_dim": N_EMBD,
        **shape.values,
    }
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])


def _add(weights: RandomWeights, tensor: Tensor) -> None:
    if tensor.name.startswith("v.patch_embd.weight"):
        deviation = 2.0 / (3 * tensor.shape[-1] ** 2) ** 0.5
        weights.add(tensor.name, weights.draw(tensor.name, tensor.shape, deviation))
    elif tensor.name == "mm.input_projection.weight":  # Gemma's is stored the other way round
        draw = weights.draw(tensor.name, tensor.shape, 1 / tensor.shape[0] ** 0.5)
        weights.add(tensor.name, draw)
    elif ".ln" in tensor.name or "_ln." in tensor.name:
        centre = 1.0 if tensor.name.endswith("weight") else 0.0
        weights.add_vector(tensor.name, tensor.shape[0], centre=centre)
    else:
        add_tensor(weights, tensor.name, tensor.shape)


def _linear(name: str, n_out: int, n_in: int) -> Tensors:
    yield Tensor(f"{name}.weight", (n_out, n_in))
    yield Tensor(f"{name}.bias", (n_out,))


def _norm(name: str, width: int = _WIDTH) -> Tensors:
    yield Tensor(f"{name}.weight", (width,))
    yield Tensor(f"{name}.bias", (width,))


def _block(shape: _Kind) -> Tensors:
    yield from _norm("ln1")
    yield from _norm("ln2")
    if shape.has_fused_attention:
        yield from _linear("attn_qkv", 3 * _WIDTH, _WIDTH)
    else:
        for part in ("q", "k", "v"):
            yield from _linear(f"attn_{part}", _WIDTH, _WIDTH)
    yield from _linear("attn_out", _WIDTH, _WIDTH)
    yield from _linear("ffn_up", _N_FF, _WIDTH)
    yield from _linear("ffn_down", _WIDTH, _N_FF)


def _deepstack(layer_index: int) -> Tensors:
    name, n_merged = f"v.deepstack.{layer_index}", _WIDTH * _MERGE**2
    yield from _norm(f"{name}.norm", n_merged)
    yield from _linear(f"{name}.fc1", n_merged, n_merged)
    yield from _linear(f"{name}.fc2", N_EMBD, n_merged)


def _patches(shape: _Kind, *, n_extra: int = 0) -> Tensors:
    yield Tensor("v.patch_embd.weight", (_WIDTH, 3, shape.patch_size, shape.patch_size))
    yield Tensor("v.position_embd.weight", (shape.n_patches + n_extra, _WIDTH))


def _mlp(shape: _Kind) -> Tensors:
    """LLaVA: CLIP with a class token, which the projection leaves out, then two matrices."""
    yield from _patches(shape, n_extra=1)
    yield Tensor("v.class_embd", (_WIDTH,))
    yield from _norm("v.pre_ln")
    yield from _linear("mm.0", N_EMBD, _WIDTH)
    yield from _linear("mm.2", N_EMBD, N_EMBD)


def _idefics3(shape: _Kind) -> Tensors:
    yield from _patches(shape)
    yield Tensor("v.patch_embd.bias", (_WIDTH,))
    yield from _norm("v.post_ln")
    yield Tensor("mm.model.fc.weight", (N_EMBD, _WIDTH * _MERGE**2))


def _gemma3(shape: _Kind) -> Tensors:
    yield from _patches(shape)
    yield Tensor("v.patch_embd.bias", (_WIDTH,))
    yield from _norm("v.post_ln")
    yield Tensor("mm.input_projection.weight", (_WIDTH, N_EMBD))
    yield Tensor("mm.soft_emb_norm.weight", (_WIDTH,))


def _lfm2(shape: _Kind) -> Tensors:
    yield from _patches(shape)
    yield Tensor("v.patch_embd.bias", (_WIDTH,))
    yield from _norm("v.post_ln")
    n_merged = _WIDTH * _MERGE**2
    yield from _norm("mm.input_norm", n_merged)
    yield from _linear("mm.1", n_merged, n_merged)
    yield from _linear("mm.2", N_EMBD, n_merged)


def _qwen2vl(shape: _Kind) -> Tensors:
    """Two frames' patches are added: a still image is its own second frame."""
    kernel = (_WIDTH, 3, shape.patch_size, shape.patch_size)
    yield Tensor("v.patch_embd.weight", kernel)
    yield Tensor("v.patch_embd.weight.1", kernel)
    yield from _norm("v.post_ln")
    n_merged = _WIDTH * _MERGE**2
    yield from _linear("mm.0", n_merged, n_merged)
    yield from _linear("mm.2", N_EMBD, n_merged)


def _qwen3vl(shape: _Kind) -> Tensors:
    yield from _qwen2vl(shape)
    yield Tensor("v.patch_embd.bias", (_WIDTH,))
    yield Tensor("v.position_embd.weight", (shape.n_patches, _WIDTH))


_SCALE = {"projector.scale_factor": _MERGE}
_KINDS: Mapping[str, _Kind] = {
    "mlp": _Kind(28, 14, _mlp),
    "idefics3": _Kind(56, 14, _idefics3, {**_SCALE, "preproc_image_size": 56}),
    "gemma3": _Kind(56, 14, _gemma3, _SCALE),
    "lfm2": _Kind(32, 4, _lfm2, _SCALE),
    "qwen2vl_merger": _Kind(64, 8, _qwen2vl),
    "qwen3vl_merger": _Kind(64, 8, _qwen3vl, has_fused_attention=True),
}
