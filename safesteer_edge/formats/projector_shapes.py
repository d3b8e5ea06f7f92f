"""The tensor shapes of a projector, as far as libmtmd computes with them unchecked.

ggml asserts that the operands of each operation fit, which ends the process; so what a graph
needs is compared here, for the kinds of projectors whose blocks are a plain transformer's.
Source: clip_graph::build_vit and the files in llama.cpp's tools/mtmd/models/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from safesteer_edge.formats.gguf_file import GgufFile
from safesteer_edge.formats.gguf_header import FLOAT_TYPES, UNCOMPUTABLE_TYPES, GgufTensor

_Shape = tuple[int, ...]
_Tensors = Mapping[str, GgufTensor]

# Their blocks work on vectors of clip.*.embedding_length throughout.
# fmt: off
_PLAIN_BLOCKS = frozenset({
    "mlp", "ldp", "ldpv2", "resampler", "adapter", "gemma3", "idefics3", "internvl", "pixtral",
    "lightonocr", "lfm2", "llama4", "kimivl", "janus_pro", "phi4", "nemotron_v2_vl", "glm4v",
    "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "paddleocr",
    "ultravox", "voxtral", "qwen2a", "glma", "musicflamingo", "meralion",
})
# fmt: on
# Old files of these kinds have the two feed-forward tensors' names swapped, which llama.cpp undoes.
_SWAPPED_NAMES = frozenset(
    {"mlp", "ldp", "ldpv2", "adapter", "gemma3", "idefics3", "resampler"}
    | {"qwen2vl_merger", "qwen2.5vl_merger"}
)
# What the graphs take from each block without asking whether it is there; others take either.
_SEPARATE = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
_SEPARATE_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_ATTENTION_INPUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("mlp", "ldp", "ldpv2", "adapter"), _SEPARATE),
    **dict.fromkeys(("qwen2vl_merger", "qwen2.5vl_merger"), _SEPARATE + _SEPARATE_BIASES),
    "qwen3vl_merger": ("attn_qkv.weight", "attn_qkv.bias"),
}
# Their images have one size, and a learned position for each patch of it.
_FIXED_POSITIONS = {"internvl": 1, "idefics3": 0, "gemma3": 0}  # and so many more


def check_shapes(file: GgufFile, modality: Literal["vision", "audio"], projector_type: str) -> None:
    """Raise ModelFileError where the tensors of one encoder do not fit together."""
    tensors = {tensor.name: tensor for tensor in file.tensors}
    _check_storage(file, tensors)
    if projector_type not in _PLAIN_BLOCKS:
        return
    n_embd = file.integer(f"clip.{modality}.embedding_length") or 0
    prefix = "v" if modality == "vision" else "a"
    q_width, kv_width = _attention_widths(file, modality, n_embd)
    expected: dict[str, _Shape] = {
        f"{prefix}.{norm}.{part}": (n_embd,)
        for norm in ("pre_ln", "post_ln")
        for part in ("weight", "bias")
    }
    for block_index in range(file.integer(f"clip.{modality}.block_count") or 0):
        block = f"{prefix}.blk.{block_index}"
        expected |= _block_shapes(block, n_embd, q_width, kv_width)
        _check_attention_inputs(file, tensors, block, projector_type)
        _check_feed_forward(file, tensors, block, n_embd, projector_type in _SWAPPED_NAMES)
    if modality == "vision":
        expected |= _patch_shapes(file, projector_type, n_embd)
        _check_patch_types(file, tensors, projector_type)
    for name, shape in expected.items():
        if name in tensors and _without_ones(tensors[name].shape) != _without_ones(shape):
            raise file.error(f"tensor {name!r} has shape {tensors[name].shape}; expected {shape}")
    if projector_type == "internvl":
        _check_internvl(file, tensors, n_embd)


def _check_storage(file: GgufFile, tensors: _Tensors) -> None:
    """Vectors are F32 (see `model_file`), matrices no integers, and a bias fits its weight."""
    for name, tensor in tensors.items():
        is_vector = len(tensor.shape) <= 1
        if tensor.type_name in UNCOMPUTABLE_TYPES or (is_vector and tensor.type_name != "F32"):
            raise file.error(f"tensor {name!r} is stored as {tensor.type_name}")
        weight = tensors.get(f"{name.removesuffix('.bias')}.weight")
        if weight is None or not 0 < len(weight.shape) <= 2 or not name.endswith(".bias"):
            continue
        # As long as a norm's weight, or as a matrix has outputs.
        if tensor.shape[:1] != weight.shape[-1:] or math.prod(tensor.shape[1:]) != 1:
            raise file.error(f"tensor {name!r} has shape {tensor.shape}; its weight {weight.shape}")


def _without_ones(shape: _Shape) -> _Shape:
    """Return a shape without the dimensions of 1 at its end, which ggml does not tell apart."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _attention_widths(file: GgufFile, modality: str, n_embd: int) -> tuple[int, int]:
    """Return how many numbers queries, and keys, have over all heads."""
    n_head = file.integer(f"clip.{modality}.attention.head_count") or 0
    n_head_kv = file.integer(f"clip.{modality}.attention.head_count_kv") or n_head
    head_width = file.integer(f"clip.{modality}.attention.head_dim")
    if not head_width:
        if not n_head or n_embd % n_head:
            raise file.error(f"its {n_head} attention heads do not divide a width of {n_embd}")
        head_width = n_embd // n_head
    if not n_head or n_head % n_head_kv:
        raise file.error(f"its {n_head} attention heads cannot share {n_head_kv} KV heads")
    return n_head * head_width, n_head_kv * head_width


def _block_shapes(block: str, n_embd: int, q_width: int, kv_width: int) -> dict[str, _Shape]:
    norms = {
        f"{block}.{norm}.{part}": (n_embd,)
        for norm in ("ln1", "ln2", "ls1", "ls2")
        for part in ("weight", "bias")
    }
    return norms | {
        f"{block}.attn_q.weight": (n_embd, q_width),
        f"{block}.attn_k.weight": (n_embd, kv_width),
        f"{block}.attn_v.weight": (n_embd, kv_width),
        f"{block}.attn_qkv.weight": (n_embd, q_width + 2 * kv_width),
        f"{block}.attn_out.weight": (q_width, n_embd),
    }


def _check_attention_inputs(
    file: GgufFile, tensors: _Tensors, block: str, projector_type: str
) -> None:
    wanted = _ATTENTION_INPUTS.get(projector_type)
    if wanted is None:
        wanted = ("attn_qkv.weight",) if f"{block}.attn_qkv.weight" in tensors else _SEPARATE
    missing = [name for name in wanted if f"{block}.{name}" not in tensors]
    if missing:
        raise file.error(f"tensor {f'{block}.{missing[0]}'!r} is missing")


def _check_feed_forward(
    file: GgufFile, tensors: _Tensors, block: str, n_embd: int, may_be_swapped: bool
) -> None:
    """Up and down mirror each other, and the gate, if there is one, is shaped as the first is."""
    up, down = (tensors.get(f"{block}.ffn_{part}.weight") for part in ("up", "down"))
    gate = tensors.get(f"{block}.ffn_gate.weight")
    if up is None or down is None:
        raise file.error(f"a feed-forward tensor of {block!r} is missing")
    if may_be_swapped and down.shape[:1] == (n_embd,):
        up, down = down, up
    if len(up.shape) != 2 or up.shape[0] != n_embd or up.shape != down.shape[::-1]:
        raise file.error(f"the feed-forward tensors of {block!r} do not fit together")
    if gate is not None and gate.shape != up.shape:
        raise file.error(f"tensor {gate.name!r} has shape {gate.shape}; expected {up.shape}")


def _patch_shapes(file: GgufFile, projector_type: str, n_embd: int) -> dict[str, _Shape]:
    patch_size = file.integer("clip.vision.patch_size") or 1
    n_patches = ((file.integer("clip.vision.image_size") or 0) // patch_size) ** 2
    shapes: dict[str, _Shape] = {"v.patch_embd.bias": (n_embd,)}
    if projector_type == "internvl":  # others have several
        shapes["v.class_embd"] = (n_embd,)
    if projector_type != "llama4":  # that one multiplies unfolded patches by a matrix
        kernel = (patch_size, patch_size, 3, n_embd)
        shapes |= {"v.patch_embd.weight": kernel, "v.patch_embd.weight.1": kernel}
    if projector_type in _FIXED_POSITIONS:
        n_positions = n_patches + _FIXED_POSITIONS[projector_type]
        shapes["v.position_embd.weight"] = (n_embd, n_positions)
    return shapes


def _check_patch_types(file: GgufFile, tensors: _Tensors, projector_type: str) -> None:
    """Patches are cut out by a convolution; fixed positions and a class are added to them."""
    for name, allowed, is_used in (
        ("v.patch_embd.weight", FLOAT_TYPES, projector_type != "llama4"),
        ("v.position_embd.weight", {"F32"}, projector_type in _FIXED_POSITIONS),
        ("v.class_embd", {"F32"}, projector_type == "internvl"),
    ):
        if is_used and name in tensors and tensors[name].type_name not in allowed:
            raise file.error(f"tensor {name!r} is stored as {tensors[name].type_name}")


def _check_internvl(file: GgufFile, tensors: _Tensors, n_embd: int) -> None:
    """The whole of the graph that the default model uses."""
    patch_size = file.integer("clip.vision.patch_size") or 1
    shuffle = file.integer("clip.vision.projector.scale_factor", 1) or 1
    image_size = file.integer("clip.vision.image_size") or 0
    if image_size < patch_size or image_size // patch_size % shuffle:
        raise file.error(
            f"images of {image_size} pixels have no whole number of {shuffle}x{shuffle} groups "
            f"of {patch_size}-pixel patches"
        )
    n_shuffled = n_embd * shuffle * shuffle
    for name in ("v.class_embd", "v.position_embd.weight", "v.patch_embd.weight"):
        if name not in tensors:
            raise file.error(f"tensor {name!r} is missing")
    norm, first, last = (tensors.get(f"mm.model.mlp.{index}.weight") for index in (0, 1, 3))
    if (
        norm is None
        or first is None
        or last is None
        or norm.shape != (n_shuffled,)
        or len(first.shape) != 2
        or len(last.shape) != 2
        or first.shape[0] != n_shuffled
        or first.shape[1] != last.shape[0]
    ):
        raise file.error(f"its projection does not start from {n_shuffled} numbers, or not fit")


# -- how wide the embeddings are that a projector gives, read from its last tensor -----------------
# `clip.vision.projection_dim` is not it for every kind. Source: clip_n_mmproj_embd in llama.cpp's
# tools/mtmd/clip.cpp, and the tensor names of load_tensors there.

# Per projector type: the tensor whose ne[index] is the language model's width.
_LAST_TENSOR: Final[dict[str, tuple[str, int]]] = {
    "ldp": ("mm.model.mb_block.1.block.2.1.bias", 0),
    "ldpv2": ("mm.model.peg.0.bias", 0),
    "resampler": ("resampler.proj.weight", 0),
    "adapter": ("adapter.linear.dense_4h_to_h.weight", 1),
    "minicpmv4_6": ("mm.down.weight", 1),
    "minimax_m3": ("mm.merger.fc2.bias", 0),
    "janus_pro": ("mm.1.bias", 0),
    "mimovl": ("mm.2.weight", 1),
    "gemma3": ("mm.input_projection.weight", 0),
    "gemma3nv": ("mm.input_projection.weight", 0),
    "gemma4v": ("mm.input_projection.weight", 1),
    "gemma4uv": ("mm.input_projection.weight", 1),
    "gemma4a": ("mm.a.input_projection.weight", 1),
    "gemma4ua": ("mm.a.input_projection.weight", 1),
    "internvl": ("mm.model.mlp.3.weight", 1),
    "nemotron_v2_vl": ("mm.model.mlp.3.weight", 1),
    "qwen2a": ("mm.a.fc.weight", 1),
    "meralion": ("mm.a.mlp.3.weight", 1),
    "dots3note_a": ("mm.a.mlp.3.weight", 1),
    "granite_speech": ("a.proj_linear.weight", 1),
    "lfm2a": ("a.position_embd.weight", 0),
    # A main path and `deepstack` paths side by side; the model's width is one path's.
    "qwen3vl_merger": ("mm.2.bias", 0),
    **dict.fromkeys(
        ("qwen2vl_merger", "qwen2.5vl_merger", "exaone4_5", "youtuvl", "ling3vl"),
        ("mm.2.bias", 0),
    ),
    **dict.fromkeys(
        ("phi4", "pixtral", "lightonocr", "dots_ocr", "dots3note_v", "lfm2"), ("mm.2.weight", 1)
    ),
    **dict.fromkeys(
        ("kimivl", "paddleocr", "kimik25", "yasa2", "deepseek4v", "muse-glimmer"),
        ("mm.2.weight", 1),
    ),
    **dict.fromkeys(
        ("step3vl", "llama4", "idefics3", "deepseekocr", "deepseekocr2", "hunyuanvl"),
        ("mm.model.fc.weight", 1),
    ),
    **dict.fromkeys(("glm4v", "glm5v", "cogvlm"), ("mm.down.weight", 1)),
    **dict.fromkeys(
        ("ultravox", "voxtral", "musicflamingo", "qwen3a", "glma", "mimo_audio", "parakeet"),
        ("mm.a.mlp.2.weight", 1),
    ),
}


def embedding_width(file: GgufFile, projector_type: str) -> int | None:
    """Return n_embd of the language model that this projector feeds; None if that is unknown."""
    if projector_type == "granite4_vision":  # several projectors of this width each
        return file.integer("clip.vision.projection_dim")
    if projector_type == "mlp":  # LLaVA; the Yi variant has a norm between, and more tensors
        is_yi = file.tensor("mm.3.weight") is not None
        name, index = ("mm.3.bias", 0) if is_yi else ("mm.2.weight", 1)
    elif projector_type in _LAST_TENSOR:
        name, index = _LAST_TENSOR[projector_type]
    else:
        return None
    tensor = file.tensor(name)
    return tensor.shape[index] if tensor is not None and len(tensor.shape) > index else None
