"""Control vectors: what is written can be read, by us and by others, and nothing else is taken."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from safesteer_edge.errors import VectorFileError
from safesteer_edge.formats.control_vector_file import (
    BLOCK_OUTPUT_0BASED,
    UNRECORDED,
    ControlVector,
    read_control_vector,
    write_control_vector,
)
from tests.tiny_models import write_tiny_llama

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
KEYS = st.from_regex(r"[a-z_]{1,20}", fullmatch=True).filter(
    lambda key: key not in ("layer_convention", "mode")
)
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50)


def directions(n_layer: int, n_embd: int, seed: int = 0) -> Any:
    rows = np.random.default_rng(seed).standard_normal((n_layer, n_embd)).astype(np.float32)
    rows[0] = 0
    return rows


@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 40), st.integers(1, 40)),
        elements=FLOATS,
    ),
    hint=TEXTS,
    metadata=st.dictionaries(KEYS, TEXTS, max_size=4),
)
def test_a_vector_comes_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, hint: str, metadata: dict[str, str]
):
    rows[0] = 0
    path = tmp_path_factory.getbasetemp() / "vector.gguf"
    write_control_vector(path, ControlVector(rows, hint, metadata=metadata))
    vector = read_control_vector(path)
    assert vector.directions.tobytes() == rows.tobytes()
    assert (vector.n_layer, vector.n_embd) == rows.shape
    assert (vector.model_hint, dict(vector.metadata)) == (hint, metadata)
    assert vector.layer_convention == BLOCK_OUTPUT_0BASED


def test_the_gguf_package_reads_it_as_llama_cpp_expects_it(tmp_path: Path):
    path, rows = tmp_path / "vector.gguf", directions(5, 7)
    write_control_vector(path, ControlVector(rows, "llama", metadata={"modality": "image"}))
    reader = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "controlvector"
    assert values["controlvector.model_hint"] == "llama"
    assert values["controlvector.layer_count"] == 4
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    assert values["safesteer.layer_convention"] == "block_output_0based"
    assert values["safesteer.modality"] == "image"
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{n}" for n in range(1, 5)]
    for tensor, row in zip(reader.tensors, rows[1:], strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, row)


def test_the_same_vector_gives_the_same_bytes(tmp_path: Path):
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path in paths:
        write_control_vector(path, ControlVector(directions(3, 4), "llama"))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def write_foreign(
    path: Path,
    tensors: dict[str, Any],
    *,
    architecture: str = "controlvector",
    add: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """A control vector as repeng and llama.cpp's generator write it."""
    writer = gguf.GGUFWriter(path, architecture)
    if add:
        add(writer)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ROW = np.arange(1, 5, dtype=np.float32)


@pytest.mark.parametrize("add_count", [gguf.GGUFWriter.add_uint32, gguf.GGUFWriter.add_int32])
def test_files_of_other_programs_are_read(tmp_path: Path, add_count: Callable[..., None]):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_string("controlvector.model_hint", "mistral")
        add_count(writer, "controlvector.layer_count", 2)

    tensors = {"direction.3": ROW, "direction.1": -ROW}
    vector = read_control_vector(write_foreign(tmp_path / "v.gguf", tensors, add=add))
    assert (vector.model_hint, vector.layer_convention) == ("mistral", UNRECORDED)
    np.testing.assert_array_equal(vector.directions, [0 * ROW, -ROW, 0 * ROW, ROW])


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_directions_of_half_the_width_are_read(tmp_path: Path, type_name: str):
    wanted = gguf.GGMLQuantizationType[type_name]
    rows = directions(3, 64)
    stored = {n: gguf.quants.quantize(rows[n], wanted) for n in (1, 2)}
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    for number, row in stored.items():
        writer.add_tensor(f"direction.{number}", row, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    vector = read_control_vector(tmp_path / "v.gguf")
    for number, row in stored.items():
        expected = gguf.quants.dequantize(row, wanted)
        np.testing.assert_array_equal(vector.directions[number], expected)


def test_a_first_direction_of_zeros_is_none(tmp_path: Path):
    path = write_foreign(tmp_path / "v.gguf", {"direction.0": 0 * ROW, "direction.1": ROW})
    np.testing.assert_array_equal(read_control_vector(path).directions, [0 * ROW, ROW])


def test_a_file_that_records_no_convention_stays_so(tmp_path: Path):
    path = tmp_path / "v.gguf"
    vector = ControlVector(directions(3, 4), "llama", layer_convention=UNRECORDED)
    write_control_vector(path, vector)
    assert read_control_vector(path).layer_convention == UNRECORDED


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "0|no|numbers"),
        ({"direction.0": ROW}, "first block.*'safesteer-edge convert vector' leaves it out"),
        ({"direction.512": ROW}, "not the direction of a block"),
        ({"direction.2000000000": ROW}, "not the direction of a block"),
        ({"direction.01": ROW}, "not the direction of a block"),
        ({"direction.5.foo": ROW}, "not the direction of a block"),
        ({"direction.-1": ROW}, "not the direction of a block"),
        ({"direction.1": ROW, "bias.1": ROW}, "'bias.1' is not"),
        ({"direction.1": ROW.reshape(2, 2)}, "expected a row of BF16, F16, F32"),
        ({"direction.1": ROW.astype(np.float64)}, "expected a row of BF16, F16, F32"),
        ({"direction.1": ROW, "direction.2": ROW[:3]}, r"\[3, 4\] numbers"),
        ({"direction.1": ROW * np.float32(np.nan)}, "not finite"),
        ({"direction.1": ROW * np.float32(np.inf)}, "not finite"),
    ],
)
def test_tensors_that_are_no_directions_are_refused(
    tmp_path: Path, tensors: dict[str, Any], reason: str
):
    path = write_foreign(tmp_path / "v.gguf", tensors)
    with pytest.raises(VectorFileError, match=reason) as caught:
        read_control_vector(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (lambda w: w.add_string("glp.mode", "project"), "'glp.mode' asks for another operation"),
        (lambda w: w.add_uint32("safesteer.mode", 1), "another operation"),
        (lambda w: w.add_string("controlvector.layer_count", "1"), "not an integer"),
        (lambda w: w.add_int32("controlvector.layer_count", -1), "says -1"),
        (lambda w: w.add_uint32("controlvector.layer_count", 0), "says 0"),
        (lambda w: w.add_uint32("controlvector.layer_count", 512), "says 512"),
        (lambda w: w.add_uint32("controlvector.model_hint", 1), "not a text"),
        (lambda w: w.add_string("safesteer.layer_convention", "other"), "convention is 'other'"),
        (lambda w: w.add_uint32("safesteer.note", 1), "not a text"),
    ],
)
def test_metadata_that_changes_the_meaning_is_refused(
    tmp_path: Path, add: Callable[[gguf.GGUFWriter], None], reason: str
):
    path = write_foreign(tmp_path / "v.gguf", {"direction.1": ROW}, add=add)
    with pytest.raises(VectorFileError, match=reason):
        read_control_vector(path)


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(VectorFileError, match="'llama' model, not a control vector"):
        read_control_vector(write_tiny_llama(tmp_path / "m.gguf", n_layer=1))
    with pytest.raises(VectorFileError, match="no such file"):
        read_control_vector(tmp_path / "missing.gguf")
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(VectorFileError, match="ZIP"):
        read_control_vector(tmp_path / "zip.gguf")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.ones((3, 4)), "row 0 is not zero"),
        (np.zeros((1, 4)), "1 layers of 4"),
        (np.zeros((513, 1)), "513 layers"),
        (np.zeros((3, 0)), "3 layers of 0"),
        (np.zeros(4), "expected"),
        (np.array([[0.0], [np.nan]]), "not finite"),
    ],
)
def test_values_that_cannot_be_a_vector_are_refused(rows: Any, reason: str):
    with pytest.raises(VectorFileError, match=reason):
        ControlVector(rows, "llama")


@pytest.mark.parametrize("key", ["", "a b", "layer_convention", "mode", "glp.mode", "ä", "a\n"])
def test_metadata_that_could_not_be_read_back_is_refused(key: str):
    with pytest.raises(VectorFileError, match="metadata entry"):
        ControlVector(directions(2, 2), "llama", metadata={key: "x"})
    for text in ("a\0", "\ud800"):
        with pytest.raises(VectorFileError, match="metadata entry"):
            ControlVector(directions(2, 2), text, metadata={"model_hint": "mine"})


def test_a_vector_is_a_copy_that_cannot_be_changed():
    rows = directions(3, 4)
    vector = ControlVector(rows, "llama")
    rows[1] = 9
    assert vector.directions[1, 0] != 9
    with pytest.raises(ValueError, match="read-only"):
        vector.directions[1, 0] = 9


def test_a_vector_can_be_sent_to_another_process():
    vector = ControlVector(directions(3, 4), "llama", metadata={"modality": "image"})
    copy = pickle.loads(pickle.dumps(vector))
    np.testing.assert_array_equal(copy.directions, vector.directions)
    assert copy.metadata == {"modality": "image"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "no folder" / "v.gguf"
    with pytest.raises(OSError, match="no folder"):
        write_control_vector(path, ControlVector(directions(2, 2), "llama"))
