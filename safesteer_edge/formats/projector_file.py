"""Projectors (mmproj files): what the header says, checked before libmtmd loads the file.

libmtmd reads every value with a getter of one type that asserts it, computes with the numbers,
and ends the process where they do not fit. Source of keys, types and limits: clip_model_loader in
llama.cpp's tools/mtmd/clip.cpp. Known attacks: ggml-org/llama.cpp#24976, #27166, #27224.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from safesteer_edge.formats.gguf_file import GgufFile, read_gguf
from safesteer_edge.formats.gguf_header import GgufArray
from safesteer_edge.formats.projector_shapes import check_shapes, embedding_width

_Modality = Literal["vision", "audio"]

_TYPES = {
    "general.name": "str",
    "general.description": "str",
    "clip.projector_type": "str",
    "clip.vision.projector_type": "str",
    "clip.audio.projector_type": "str",
    "clip.has_vision_encoder": "bool",
    "clip.has_audio_encoder": "bool",
    "clip.has_gen_audio_encoder": "bool",
    "clip.use_gelu": "bool",
    "clip.use_silu": "bool",
    "clip.vision.mm_patch_merge_type": "str",
    "clip.vision.swiglu_clamp": "f32",
    "clip.minicpmv_version": "i32",
}
_Range = tuple[int, int]
_MEGAPIXEL = 1_000_000
# Read as u32. The greatest values are far above those of any known model.
_ENCODER_RANGES: dict[str, _Range] = {
    "embedding_length": (1, 65_536),
    "block_count": (0, 256),
    "feed_forward_length": (0, 1 << 20),
    "projection_dim": (0, 1 << 20),
    "attention.head_count": (0, 1_024),
    "attention.head_count_kv": (0, 1_024),
    "attention.head_dim": (0, 65_536),
    "window_size": (0, 4_096),
}
_REQUIRED = ("embedding_length", "block_count", "feed_forward_length", "projection_dim")
_VISION_RANGES: dict[str, _Range] = {
    "image_size": (0, 8_192),
    "patch_size": (1, 256),
    "image_min_pixels": (0, 16 * _MEGAPIXEL),
    "image_max_pixels": (0, 64 * _MEGAPIXEL),
    "preproc_min_tiles": (1, 256),
    "preproc_max_tiles": (1, 256),
    "preproc_image_size": (0, 8_192),
    "projector.scale_factor": (1, 8),
    "projector.query_side": (1, 1_024),
    "projector.window_side": (1, 1_024),
    "spatial_merge_size": (1, 8),
    "n_wa_pattern": (0, 256),
    "expert_used_count": (0, 1_024),
    "sam.head_count": (1, 1_024),
    "sam.block_count": (0, 256),
    "sam.embedding_length": (1, 65_536),
}
_AUDIO_RANGES: dict[str, _Range] = {
    "num_mel_bins": (1, 1_024),
    "projector.stack_factor": (1, 64),
    "projector.window_size": (1, 8_192),
    "projector.downsample_rate": (1, 1_024),
    "projector.head_count": (1, 1_024),
    "chunk_size": (1, 8_192),
    "conv_kernel_size": (1, 1_024),
    "max_pos_emb": (1, 65_536),
    "rvq.num_quantizers": (1, 256),
    "local_block_count": (0, 256),
    "local_group_size": (1, 1_024),
    "subsampling_factor": (1, 64),
}
_MAX_PATCHES = 65_536
_MAX_LISTED = 1_024  # entries in lists of layers and of resolutions


@dataclass(frozen=True, slots=True)
class ProjectorInfo:
    """What the program needs to know about a projector.

    projector_types: of the vision encoder, then of the audio encoder, as far as there are any.
    projection_dim: n_embd of the language model it feeds; None where that cannot be told.
    square_side: pictures must come as squares of this side, in pixels; None: in any shape.
    """

    path: Path
    projector_types: tuple[str, ...]
    has_vision: bool
    has_audio: bool
    projection_dim: int | None
    square_side: int | None
    size_bytes: int
    tensor_table_sha256: str


def check_projector(path: Path) -> ProjectorInfo:
    """Return what a projector file is, after checking that it hangs together.

    Takes 1 ms; the weights are not read.
    Raises ModelFileError with the reason and what to do about it.
    """
    file = read_gguf(path)
    if file.architecture != "clip":
        raise file.error(
            f"it is for architecture {file.architecture!r}, not a projector (mmproj)",
            "pass a language model with --model, and its mmproj file with --mmproj",
        )
    _check_types(file)
    modalities = _modalities(file)
    types: list[str] = []
    widths: list[int | None] = []
    for modality in modalities:
        projector_type = _projector_type(file, modality)
        _check_encoder(file, modality)
        check_shapes(file, modality, projector_type)
        types.append(projector_type)
        widths.append(embedding_width(file, projector_type))
    if len(set(widths)) > 1 and None not in widths:
        raise file.error(f"its vision and audio parts feed models of different widths: {widths}")
    return ProjectorInfo(
        path=path,
        projector_types=tuple(types),
        has_vision="vision" in modalities,
        has_audio="audio" in modalities,
        projection_dim=next((width for width in widths if width is not None), None),
        square_side=_square_side(file, types[0]) if "vision" in modalities else None,
        size_bytes=file.size_bytes,
        tensor_table_sha256=file.tensor_table_sha256(),
    )


def _square_side(file: GgufFile, projector_type: str) -> int | None:
    """The side of the one tile that this kind takes.

    llama.cpp's preprocessing gives a larger picture two tiles, whatever the limit of one says, and
    stretches both to squares (mtmd-image.cpp, mtmd_image_preprocessor_llava_uhd).
    """
    is_one_tile = file.integer("clip.vision.preproc_max_tiles") == 1
    is_square = projector_type == "internvl" and is_one_tile
    return file.integer("clip.vision.image_size") if is_square else None


def _check_types(file: GgufFile) -> None:
    expected = dict(_TYPES)
    for modality, ranges in (("vision", _VISION_RANGES), ("audio", _AUDIO_RANGES)):
        expected[f"clip.{modality}.attention.layer_norm_epsilon"] = "f32"
        for key in (*_ENCODER_RANGES, *ranges):
            expected[f"clip.{modality}.{key}"] = "u32"
    expected["clip.minicpmv_query_num"] = "u32"
    for key, type_name in file.types.items():
        if type_name != expected.get(key, type_name):
            raise file.error(
                f"metadata key {key!r} is of type {type_name}; expected {expected[key]}"
            )


def _modalities(file: GgufFile) -> list[_Modality]:
    if file.metadata.get("clip.has_gen_audio_encoder"):
        raise file.error("it makes speech, which is not supported", "use another projector")
    wanted: tuple[_Modality, ...] = ("vision", "audio")
    modalities: list[_Modality] = [
        modality for modality in wanted if file.metadata.get(f"clip.has_{modality}_encoder")
    ]
    if not modalities:
        raise file.error("it has neither a vision nor an audio encoder")
    return modalities


def _projector_type(file: GgufFile, modality: _Modality) -> str:
    """Return the kind of projector, by the names that the graphs have in llama.cpp."""
    name = file.text("clip.projector_type") or file.text(f"clip.{modality}.projector_type")
    if not name:
        raise file.error(f"it does not say what kind of {modality} projector it is")
    if name == "qwen2.5o":  # an old name for two
        return "qwen2.5vl_merger" if modality == "vision" else "qwen2a"
    return name


def _check_encoder(file: GgufFile, modality: _Modality) -> None:
    ranges = _ENCODER_RANGES | (_VISION_RANGES if modality == "vision" else _AUDIO_RANGES)
    required = _REQUIRED + (("image_size", "patch_size") if modality == "vision" else ())
    for name, (least, most) in ranges.items():
        key = f"clip.{modality}.{name}"
        value = file.integer(key)
        if value is None and name in required:
            raise file.error(f"metadata key {key!r} is missing")
        if value is not None and not least <= value <= most:
            raise file.error(f"metadata key {key!r} is {value}; expected {least} to {most}")
    epsilon = file.metadata.get(f"clip.{modality}.attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
        raise file.error(f"its {modality} layer norm's epsilon is {epsilon!r}")
    n_layer = file.integer(f"clip.{modality}.block_count") or 0
    _check_list(file, f"clip.{modality}.feature_layer", -1, n_layer)
    if modality == "vision":
        _check_image_values(file, n_layer)


def _check_image_values(file: GgufFile, n_layer: int) -> None:
    def value(name: str, default: int) -> int:
        return file.integer(f"clip.vision.{name}", default) or 0

    for name in ("image_mean", "image_std"):
        numbers = _floats(file, f"clip.vision.{name}")
        if len(numbers) != 3 or not np.isfinite(numbers).all():
            raise file.error(f"its {name} is {numbers}; expected three numbers")
        if name == "image_std" and not (np.asarray(numbers) > 0).all():
            raise file.error(f"its image_std is {numbers}; expected positive numbers")
    if (value("image_size", 0) // value("patch_size", 1)) ** 2 > _MAX_PATCHES:
        raise file.error(f"its images have more than {_MAX_PATCHES} patches")
    if value("image_min_pixels", 0) > value("image_max_pixels", 64 * _MEGAPIXEL):
        raise file.error("its least number of pixels is above the greatest")
    if value("preproc_min_tiles", 0) > value("preproc_max_tiles", 256):
        raise file.error("its least number of tiles is above the greatest")
    _check_list(file, "clip.vision.image_grid_pinpoints", 1, 16_384)
    _check_list(file, "clip.vision.wa_layer_indexes", 0, n_layer - 1)


def _floats(file: GgufFile, key: str) -> list[float]:
    array = file.metadata.get(key)
    if not isinstance(array, GgufArray) or array.element_type != "f32" or array.length > 16:
        raise file.error(f"metadata key {key!r} is not a short array of f32")
    return [float(value) for value in file.numbers(key).tolist()]


def _check_list(file: GgufFile, key: str, least: int, most: int) -> None:
    """Check a list of whole numbers, if there is one."""
    array = file.metadata.get(key)
    if array is None:
        return
    if not isinstance(array, GgufArray) or array.element_type != "i32":
        raise file.error(f"metadata key {key!r} is not an array of i32")
    values = [int(value) for value in file.numbers(key).tolist()]
    if len(values) > _MAX_LISTED or not all(least <= value <= most for value in values):
        raise file.error(f"metadata key {key!r} has too many values, or some beyond {most}")
