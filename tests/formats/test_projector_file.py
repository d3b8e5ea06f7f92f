"""What makes a GGUF file a projector that libmtmd can be given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.projector_file import check_projector
from safesteer_edge.formats.projector_shapes import embedding_width
from tests.formats.edited_gguf import (
    TypedValue,
    boolean,
    edit_gguf,
    f32,
    f32_array,
    i32,
    i32_array,
    text,
    u32,
)
from tests.tiny_models import write_tiny_llama, write_tiny_projector
from tests.tiny_models.hearing_projector import write_tiny_hearing_projector


@pytest.fixture
def projector(tmp_path: Path) -> Path:
    return write_tiny_projector(tmp_path / "mmproj.gguf")


def assert_refused(path: Path, reason: str):
    with pytest.raises(ModelFileError, match=reason) as caught:
        check_projector(path)
    assert str(path) in str(caught.value)
    assert ";" in str(caught.value)


def test_the_facts_of_a_projector_are_returned(tmp_path: Path):
    path = write_tiny_projector(tmp_path / "mmproj.gguf", n_embd=96)
    info = check_projector(path)
    assert (info.path, info.projector_types) == (path, ("internvl",))
    assert (info.has_vision, info.has_audio, info.projection_dim) == (True, False, 96)
    assert info.size_bytes == path.stat().st_size
    assert info.tensor_table_sha256 == read_gguf(path).tensor_table_sha256()


@pytest.mark.parametrize(("max_tiles", "square_side"), [(1, 56), (12, None)])
def test_a_projector_of_one_tile_wants_squares(
    projector: Path, max_tiles: int, square_side: int | None
):
    path = edit_gguf(projector, values={"clip.vision.preproc_max_tiles": u32(max_tiles)})
    assert check_projector(path).square_side == square_side


def test_a_projector_that_only_hears_wants_no_squares(tmp_path: Path):
    info = check_projector(write_tiny_hearing_projector(tmp_path / "mmproj.gguf"))
    assert (info.has_vision, info.has_audio, info.square_side) == (False, True, None)


def test_a_language_model_is_not_a_projector(tmp_path: Path):
    assert_refused(write_tiny_llama(tmp_path / "m.gguf"), "pass a language model with --model")


def test_the_width_is_read_from_the_tensors_and_not_from_projection_dim(projector: Path):
    path = edit_gguf(projector, values={"clip.vision.projection_dim": u32(0)})
    assert check_projector(path).projection_dim == 64


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"clip.projector_type": None}, "what kind of vision projector"),
        ({"clip.projector_type": u32(1)}, "type u32; expected str"),
        ({"clip.has_vision_encoder": None}, "neither a vision nor an audio"),
        ({"clip.has_vision_encoder": boolean(False)}, "neither a vision nor an audio"),
        ({"clip.has_vision_encoder": u32(1)}, "type u32; expected bool"),
        ({"clip.has_gen_audio_encoder": boolean(True)}, "makes speech"),
        ({"clip.use_gelu": u32(1)}, "expected bool"),
        ({"clip.vision.block_count": i32(2)}, "type i32; expected u32"),
        ({"clip.vision.block_count": u32(257)}, "expected 0 to 256"),
        ({"clip.vision.block_count": u32(3)}, "blk.2.attn_q.weight' is missing"),
        ({"clip.vision.embedding_length": u32(0)}, "expected 1 to"),
        ({"clip.vision.embedding_length": u32(64)}, r"shape \(32|do not fit"),
        ({"clip.vision.attention.head_count": u32(0)}, "0 attention heads"),
        ({"clip.vision.attention.head_count": u32(5)}, "do not divide"),
        ({"clip.vision.attention.head_count_kv": u32(1)}, "expected"),
        ({"clip.vision.image_size": u32(8193)}, "expected 0 to 8192"),
        ({"clip.vision.image_size": None}, "image_size' is missing"),
        ({"clip.vision.image_size": u32(70)}, r"position_embd.weight' has shape"),
        ({"clip.vision.patch_size": u32(0)}, "expected 1 to 256"),
        ({"clip.vision.image_size": u32(8192), "clip.vision.patch_size": u32(1)}, "patches"),
        ({"clip.vision.projector.scale_factor": u32(3)}, "no whole number of 3x3"),
        ({"clip.vision.projector.scale_factor": u32(0)}, "expected 1 to 8"),
        ({"clip.vision.preproc_max_tiles": u32(2**31 - 1)}, "expected 1 to 256"),
        ({"clip.vision.preproc_min_tiles": u32(2)}, "above the greatest"),
        ({"clip.vision.image_min_pixels": u32(2**31)}, "image_min_pixels"),
        ({"clip.vision.image_max_pixels": u32(65_000_000)}, "image_max_pixels"),
        (
            {"clip.vision.image_min_pixels": u32(9), "clip.vision.image_max_pixels": u32(8)},
            "above the greatest",
        ),
        ({"clip.vision.attention.layer_norm_epsilon": f32(-1e-6)}, "epsilon"),
        ({"clip.vision.attention.layer_norm_epsilon": f32(float("nan"))}, "epsilon"),
        ({"clip.vision.attention.layer_norm_epsilon": u32(0)}, "expected f32"),
        ({"clip.vision.image_mean": f32_array([0.5, 0.5])}, "expected three numbers"),
        ({"clip.vision.image_mean": f32_array([0.5, float("inf"), 0.5])}, "expected three"),
        ({"clip.vision.image_mean": f32_array([0.5] * 17)}, "short array of f32"),
        ({"clip.vision.image_mean": None}, "short array of f32"),
        ({"clip.vision.image_std": f32_array([0.5, 0.0, 0.5])}, "positive numbers"),
        ({"clip.vision.image_std": i32_array([1, 1, 1])}, "short array of f32"),
        ({"clip.vision.feature_layer": i32_array([3])}, "beyond 2"),
        ({"clip.vision.feature_layer": f32_array([1.0])}, "array of i32"),
        ({"clip.vision.wa_layer_indexes": i32_array([2])}, "beyond 1"),
        ({"clip.vision.image_grid_pinpoints": i32_array([2**31 - 1])}, "beyond 16384"),
        ({"clip.vision.image_grid_pinpoints": i32_array([336] * 1025)}, "too many values"),
    ],
)
def test_metadata_that_libmtmd_would_assert_or_compute_with_is_refused(
    projector: Path, values: Mapping[str, TypedValue | None], reason: str
):
    assert_refused(edit_gguf(projector, values=values), reason)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("v.blk.0.attn_q.weight", None, "attn_q.weight' is missing"),
        ("v.blk.1.ffn_up.weight", None, "feed-forward tensor of 'v.blk.1' is missing"),
        ("v.class_embd", None, "class_embd' is missing"),
        ("v.class_embd", (33,), "expected"),
        ("v.position_embd.weight", (16, 32), "expected"),
        ("v.patch_embd.weight", (32, 3, 14, 13), "expected"),
        ("v.blk.0.ln1.weight", (31,), "its weight|expected"),
        ("v.blk.0.ls1.weight", (64,), "expected"),
        ("v.blk.0.attn_k.weight", (32, 31), "its weight|expected"),
        ("v.blk.0.attn_out.weight", (32, 33), "expected"),
        ("v.blk.0.attn_v.bias", (31,), "its weight"),
        ("v.blk.0.ffn_down.weight", (32, 63), "do not fit"),
        ("v.blk.0.ffn_up.bias", (63,), "its weight"),
        ("mm.model.mlp.0.weight", None, "does not start from 128"),
        ("mm.model.mlp.0.weight", (127,), "its weight"),
        ("mm.model.mlp.1.weight", (64, 96), "does not start from 128"),
        ("mm.model.mlp.3.weight", (64, 63), "does not start from 128"),
        ("mm.model.mlp.3.bias", (63,), "its weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    projector: Path, name: str, shape: tuple[int, ...] | None, reason: str
):
    array = None if shape is None else np.zeros(shape, dtype=np.float32)
    assert_refused(edit_gguf(projector, tensors={name: array}), reason)


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("v.blk.0.ln1.weight", "F16"),
        ("v.blk.0.attn_q.bias", "BF16"),
        ("v.class_embd", "F16"),
        ("v.position_embd.weight", "F16"),
        ("mm.model.mlp.1.weight", "I8"),
    ],
)
def test_storage_that_ggml_cannot_compute_with_is_refused(
    projector: Path, name: str, type_name: str
):
    assert_refused(edit_gguf(projector, types={name: type_name}), f"stored as {type_name}")


def test_dimensions_of_one_at_the_end_do_not_matter(projector: Path):
    # Converters differ in whether they keep PyTorch's (1, 1, n_embd) for the class token.
    tensors = {
        "v.class_embd": np.zeros((1, 1, 32), dtype=np.float32),
        "v.position_embd.weight": np.zeros((1, 17, 32), dtype=np.float32),
    }
    assert check_projector(edit_gguf(projector, tensors=tensors)).projection_dim == 64


def test_quantized_matrices_are_accepted(projector: Path):
    types = {"v.blk.0.attn_q.weight": "Q8_0", "v.patch_embd.weight": "F16"}
    assert check_projector(edit_gguf(projector, types=types)).projection_dim == 64


def test_feed_forward_names_may_be_swapped_in_old_kinds_only(projector: Path):
    swapped = {
        "v.blk.0.ffn_up.weight": np.zeros((32, 64), dtype=np.float32),
        "v.blk.0.ffn_up.bias": np.zeros(32, dtype=np.float32),
        "v.blk.0.ffn_down.weight": np.zeros((64, 32), dtype=np.float32),
        "v.blk.0.ffn_down.bias": np.zeros(64, dtype=np.float32),
    }
    assert_refused(edit_gguf(projector, tensors=swapped), "do not fit together")
    old = {"clip.projector_type": text("mlp")}
    assert check_projector(edit_gguf(projector, tensors=swapped, values=old))


def write_parts(path: Path, types: Mapping[str, str], tensors: Mapping[str, tuple[int, ...]]):
    """A projector of a kind whose shapes are not checked, with these tensors (NumPy's order)."""
    writer = GGUFWriter(path, "clip")
    for modality, projector_type in types.items():
        writer.add_bool(f"clip.has_{modality}_encoder", True)
        writer.add_string(f"clip.{modality}.projector_type", projector_type)
        for key in ("embedding_length", "feed_forward_length", "projection_dim"):
            writer.add_uint32(f"clip.{modality}.{key}", 32)
        writer.add_uint32(f"clip.{modality}.block_count", 0)
        writer.add_float32(f"clip.{modality}.attention.layer_norm_epsilon", 1e-6)
    if "vision" in types:
        writer.add_uint32("clip.vision.image_size", 28)
        writer.add_uint32("clip.vision.patch_size", 14)
        writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("projector_type", "tensors", "expected"),
    [
        ("mlp", {"mm.2.weight": (48, 32)}, 48),
        ("mlp", {"mm.2.weight": (40, 32), "mm.3.weight": (8,), "mm.3.bias": (8,)}, 8),
        ("gemma3", {"mm.input_projection.weight": (32, 48)}, 48),
        ("idefics3", {"mm.model.fc.weight": (48, 32)}, 48),
        ("qwen2.5vl_merger", {"mm.2.bias": (48,)}, 48),
        ("qwen3vl_merger", {"mm.2.bias": (48,)}, 48),
        ("granite4_vision", {}, 32),
        ("pixtral", {}, None),
        ("something_new", {"mm.2.weight": (48, 32)}, None),
    ],
)
def test_each_kind_of_projector_has_its_own_last_tensor(
    tmp_path: Path,
    projector_type: str,
    tensors: Mapping[str, tuple[int, ...]],
    expected: int | None,
):
    path = write_parts(tmp_path / "p.gguf", {"vision": projector_type}, tensors)
    assert embedding_width(read_gguf(path), projector_type) == expected


def test_sight_and_hearing_in_one_file_must_feed_one_model(tmp_path: Path):
    types = {"vision": "gemma4uv", "audio": "gemma4ua"}
    tensors = {"mm.input_projection.weight": (48, 32), "mm.a.input_projection.weight": (48, 32)}
    info = check_projector(write_parts(tmp_path / "p.gguf", types, tensors))
    assert (info.projector_types, info.projection_dim) == (("gemma4uv", "gemma4ua"), 48)
    assert (info.has_vision, info.has_audio) == (True, True)
    tensors["mm.a.input_projection.weight"] = (40, 32)
    assert_refused(write_parts(tmp_path / "q.gguf", types, tensors), "different widths")


def test_the_old_name_of_two_kinds_is_told_apart(tmp_path: Path):
    types = {"vision": "qwen2.5o", "audio": "qwen2.5o"}
    tensors = {"mm.2.bias": (48,), "mm.a.fc.weight": (48, 32)}
    path = write_parts(tmp_path / "p.gguf", types, tensors)
    heads = {f"clip.{modality}.attention.head_count": u32(2) for modality in types}
    info = check_projector(edit_gguf(path, values=heads))
    assert info.projector_types == ("qwen2.5vl_merger", "qwen2a")
