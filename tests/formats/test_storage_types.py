"""The tensor types that a model may be stored in are those that llama.cpp computes with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.gguf_header import TENSOR_TYPES, UNCOMPUTABLE_TYPES, GgufTensor
from safesteer_edge.formats.model_file import check_language_model
from tests.formats.gguf_bytes import string, tensor_row
from tests.formats.native_loader import load_natively
from tests.tiny_models import write_tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Wide enough for the largest blocks, of 256."""
    return write_tiny_llama(
        tmp_path / "wide.gguf", n_layer=1, n_embd=256, n_head=2, n_head_kv=2, n_ff=256
    )


def stored_as(model: Path, types: Mapping[str, int], name: str) -> Path:
    """Write a copy whose tensors named in `types` are zeros of those types."""
    file, data = read_gguf(model), model.read_bytes()
    rows, blob = b"", b""
    for tensor in file.tensors:
        type_id = types.get(tensor.name, tensor.ggml_type)
        rows += tensor_row(tensor.name, tensor.shape, type_id, len(blob))
        raw = data[tensor.offset : tensor.offset + tensor.size_bytes]
        if tensor.name in types:
            _, block_size, block_bytes = TENSOR_TYPES[type_id]
            raw = bytes(math.prod(tensor.shape) // block_size * block_bytes)
        blob += raw + bytes(-len(raw) % 32)
    header = data[: data.index(string(file.tensors[0].name))] + rows
    path = model.with_name(f"{name}.gguf")
    path.write_bytes(header + bytes(-len(header) % 32) + blob)
    return path


def is_matrix(tensor: GgufTensor) -> bool:
    return len(tensor.shape) == 2


def test_llama_cpp_computes_with_every_type_that_is_accepted(model: Path):
    names = [tensor.name for tensor in read_gguf(model).tensors if is_matrix(tensor)]
    paths = [
        stored_as(model, dict.fromkeys(names, type_id), tensor_type.name)
        for type_id, tensor_type in TENSOR_TYPES.items()
        if tensor_type.name not in UNCOMPUTABLE_TYPES
    ]
    for path in paths:
        check_language_model(path)
    outcome = load_natively("model", paths)
    assert (outcome.killer, outcome.n_loaded) == (None, len(paths)), outcome.last_words


@pytest.mark.parametrize("tensor_name", ["token_embd.weight", "blk.0.attn_q.weight"])
@pytest.mark.parametrize("type_name", sorted(UNCOMPUTABLE_TYPES))
def test_the_types_that_end_the_process_are_refused(model: Path, tensor_name: str, type_name: str):
    (type_id,) = (number for number, each in TENSOR_TYPES.items() if each.name == type_name)
    path = stored_as(model, {tensor_name: type_id}, type_name)
    with pytest.raises(ModelFileError, match=f"stored as {type_name}"):
        check_language_model(path)
