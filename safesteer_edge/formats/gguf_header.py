"""The walk over a GGUF file's header: every count and length is checked before it is used.

The header is read in pieces as the walk asks for them, so nothing is allocated because a field
says so, and the weights are never read. (A memory map would be killed by SIGBUS if another
program shortened the file meanwhile.) Layout: github.com/ggml-org/ggml, docs/gguf.md. Each limit
that is stricter than the format is what llama.cpp's ggml/src/gguf.cpp demands, or names its reason.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, TypeAlias

from safesteer_edge.errors import ModelFileError

# -- names and sizes of the types that a GGUF file's header speaks of ------------------------------


class ScalarType(NamedTuple):
    """A GGUF metadata value type of fixed size."""

    name: str
    layout: struct.Struct


class TensorType(NamedTuple):
    """How ggml stores a row: blocks of `block_size` elements, `block_bytes` bytes each."""

    name: str
    block_size: int
    block_bytes: int


STRING_TYPE: Final = 8
ARRAY_TYPE: Final = 9

# gguf_type in llama.cpp's ggml/include/gguf.h
SCALAR_TYPES: Final = {
    0: ScalarType("u8", struct.Struct("<B")),
    1: ScalarType("i8", struct.Struct("<b")),
    2: ScalarType("u16", struct.Struct("<H")),
    3: ScalarType("i16", struct.Struct("<h")),
    4: ScalarType("u32", struct.Struct("<I")),
    5: ScalarType("i32", struct.Struct("<i")),
    6: ScalarType("f32", struct.Struct("<f")),
    7: ScalarType("bool", struct.Struct("<B")),
    10: ScalarType("u64", struct.Struct("<Q")),
    11: ScalarType("i64", struct.Struct("<q")),
    12: ScalarType("f64", struct.Struct("<d")),
}
VALUE_TYPE_NAMES: Final = {
    **{type_id: scalar.name for type_id, scalar in SCALAR_TYPES.items()},
    STRING_TYPE: "str",
    ARRAY_TYPE: "arr",
}

# ggml_type in ggml/include/ggml.h, block layouts in ggml/src/ggml-common.h. Left out: the numbers
# of removed types, and Q8_1 (9) and Q8_K (15): ggml makes those while it computes, and has no
# product for weights of these types, so that a file with them crashes the process.
TENSOR_TYPES: Final = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
    42: TensorType("Q2_0", 64, 18),
}
FLOAT_TYPES: Final = frozenset({"F32", "F16", "BF16"})
# Types that ggml stores and copies, and multiplies no matrix of.
UNCOMPUTABLE_TYPES: Final = frozenset({"I8", "I16", "I32", "I64", "F64"})

# llama_ftype in llama.h: what `general.file_type` says about the file as a whole.
FILE_TYPES: Final = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}


_READ_BYTES = 1 << 20
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
# Both are C strings in llama.cpp, which would end at a NUL that we read over.
_KEY = re.compile(rb"[A-Za-z0-9_.:/+\-]+")
_TENSOR_NAME = re.compile(rb"[!-~]+")
_MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME - 1
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS


@dataclass(frozen=True, slots=True)
class GgufLimits:
    """How much of a header is read before the file is refused.

    The largest real headers known are about 30 MB: 262,144 tokens, 514,906 merges and a
    tokenizer.json beside them.
    """

    n_keys: int = 4_096
    n_tensors: int = 65_536
    n_array_elements: int = 8_000_000
    """Of all arrays together; a second's walk."""
    key_bytes: int = 256
    string_bytes: int = 64 << 20
    header_bytes: int = 256 << 20
    alignment: int = 1 << 20


@dataclass(frozen=True, slots=True)
class GgufArray:
    """Where an array value lies: `size_bytes` from the file's byte `offset` on."""

    element_type: str
    length: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table.

    shape: ne[0] (the contiguous dimension) first, as in ggml; () for a scalar.
    offset: of the data, from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    type_name: str
    offset: int
    size_bytes: int


GgufValue: TypeAlias = bool | int | float | str | GgufArray


class HeaderCursor:
    """A position in the header that reads the file on as it is asked to advance."""

    def __init__(self, file: BinaryIO, path: Path, size_bytes: int, limits: GgufLimits) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.limits = limits
        self.position = 0
        self.n_array_elements = 0
        self._file = file
        self._buffer = bytearray()

    def error(self, problem: str, remedy: str = "download it again") -> ModelFileError:
        """Return the error to raise about this file."""
        return ModelFileError(f"cannot read {str(self.path)!r}: {problem}; {remedy}")

    def buffered(self, end: int) -> bytearray:
        """Return the buffer, holding at least the file's first `end` bytes.

        Raises ModelFileError if the file or the limit on headers ends before.
        """
        if end > self.size_bytes:
            raise self.error(
                f"the file ends at byte {self.size_bytes}, in the middle of its header"
            )
        if end > self.limits.header_bytes:
            raise self.error(f"its header is longer than {self.limits.header_bytes} bytes")
        missing = end - len(self._buffer)
        if missing > 0:
            self._buffer += self._file.read(max(missing, _READ_BYTES))
            if len(self._buffer) < end:
                raise self.error("the file became shorter while it was read", "try again")
        return self._buffer

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes and step over them."""
        end = self.position + n_bytes
        taken = bytes(self.buffered(end)[self.position : end])
        self.position = end
        return taken

    def u32(self) -> int:
        """Return the next unsigned 32-bit number."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """Return the next unsigned 64-bit number."""
        return int(_U64.unpack(self.take(8))[0])

    def short_string(self, what: str, max_bytes: int) -> bytes:
        """Return the next string, of 1 to max_bytes bytes."""
        length = self.u64()
        if not 0 < length <= max_bytes:
            raise self.error(f"{what} has {length} bytes; expected 1 to {max_bytes}")
        return self.take(length)


def read_metadata(cursor: HeaderCursor, n_keys: int) -> dict[str, tuple[str, GgufValue]]:
    """Return {key: (type name, value)} and leave the cursor behind the last pair."""
    metadata: dict[str, tuple[str, GgufValue]] = {}
    for index in range(n_keys):
        raw_key = cursor.short_string(f"metadata key {index}", cursor.limits.key_bytes)
        if not _KEY.fullmatch(raw_key):
            raise cursor.error(f"metadata key {index} is {raw_key!r}, which is not a name")
        key = raw_key.decode("ascii")
        if key in metadata:
            raise cursor.error(f"metadata key {key!r} occurs twice")
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: HeaderCursor, key: str) -> tuple[str, GgufValue]:
    type_id = cursor.u32()
    if type_id == ARRAY_TYPE:
        return "arr", _walk_array(cursor, key)
    if type_id == STRING_TYPE:
        return "str", _read_text(cursor, key)
    if type_id not in SCALAR_TYPES:
        raise cursor.error(f"metadata key {key!r} has the unknown value type {type_id}")
    name, layout = SCALAR_TYPES[type_id]
    value = layout.unpack(cursor.take(layout.size))[0]
    if name == "bool":
        if value > 1:
            raise cursor.error(f"metadata key {key!r} is a boolean of value {value}")
        return name, bool(value)
    return name, value


def _read_text(cursor: HeaderCursor, key: str) -> str:
    length = cursor.u64()
    if length > cursor.limits.string_bytes:
        raise cursor.error(f"metadata key {key!r} is a text of {length} bytes")
    try:
        text = cursor.take(length).decode("utf-8")
    except UnicodeDecodeError as error:
        raise cursor.error(f"metadata key {key!r} is a text that is not UTF-8") from error
    if "\0" in text:  # llama.cpp would read another text than we check
        raise cursor.error(f"metadata key {key!r} is a text with a NUL in it")
    return text


def _walk_array(cursor: HeaderCursor, key: str) -> GgufArray:
    """Step over an array; its elements are decoded when someone asks for them."""
    type_id, length = cursor.u32(), cursor.u64()
    if type_id == ARRAY_TYPE:  # gguf.cpp refuses them; Python readers recurse into them
        raise cursor.error(f"metadata key {key!r} is an array of arrays")
    if type_id not in VALUE_TYPE_NAMES:
        raise cursor.error(f"metadata key {key!r} is an array of the unknown type {type_id}")
    cursor.n_array_elements += length
    if cursor.n_array_elements > cursor.limits.n_array_elements:
        raise cursor.error(f"metadata key {key!r} is an array of {length} elements")
    start = cursor.position
    if type_id == STRING_TYPE:
        _step_over_strings(cursor, key, length)
    else:
        end = start + length * SCALAR_TYPES[type_id].layout.size
        cursor.buffered(end)
        cursor.position = end
    return GgufArray(VALUE_TYPE_NAMES[type_id], length, start, cursor.position - start)


def _step_over_strings(cursor: HeaderCursor, key: str, n_strings: int) -> None:
    """Step from length to length: the hot loop, 10 ms for 100,000 tokens and merges."""
    max_bytes, unpack_from = cursor.limits.string_bytes, _U64.unpack_from
    cursor.buffered(cursor.position + 8 * n_strings)  # the least that so many strings need
    position = cursor.position
    buffer = cursor.buffered(position)
    available = len(buffer)
    for index in range(n_strings):
        if position + 8 > available:
            available = len(cursor.buffered(position + 8))
        (length,) = unpack_from(buffer, position)
        if length > max_bytes:
            raise cursor.error(f"element {index} of {key!r} is a text of {length} bytes")
        position += 8 + length
    cursor.buffered(position)
    cursor.position = position


def read_tensor_table(cursor: HeaderCursor, n_tensors: int, alignment: int) -> list[GgufTensor]:
    """Return the tensors, their offsets absolute, and leave the cursor at the data.

    llama.cpp accepts only tensors that follow each other, each padded to the alignment, so
    this demands the same: nothing overlaps, and all of it lies inside the file.
    """
    rows: list[tuple[str, tuple[int, ...], int, int, int]] = []
    names: set[str] = set()
    for index in range(n_tensors):
        row = _read_tensor_row(cursor, index)
        if row[0] in names:
            raise cursor.error(f"tensor {row[0]!r} occurs twice")
        names.add(row[0])
        rows.append(row)
    if not rows:
        return []
    data_offset = cursor.position + -cursor.position % alignment
    end = expected = 0
    for name, _, _, size_bytes, offset in rows:
        if offset != expected:
            raise cursor.error(f"tensor {name!r} lies at offset {offset}; expected {expected}")
        end = offset + size_bytes
        expected = end + -end % alignment
    if data_offset + end > cursor.size_bytes:
        raise cursor.error(
            f"its tensors end at byte {data_offset + end}, the file at byte {cursor.size_bytes}"
        )
    cursor.position = data_offset
    return [
        GgufTensor(name, shape, type_id, TENSOR_TYPES[type_id].name, data_offset + offset, size)
        for name, shape, type_id, size, offset in rows
    ]


def _read_tensor_row(
    cursor: HeaderCursor, index: int
) -> tuple[str, tuple[int, ...], int, int, int]:
    """Return (name, shape, type, size in bytes, offset) of the table's next row."""
    raw_name = cursor.short_string(f"the name of tensor {index}", _MAX_TENSOR_NAME_BYTES)
    if not _TENSOR_NAME.fullmatch(raw_name):
        raise cursor.error(f"tensor {index} is called {raw_name!r}, which is not a name")
    name = raw_name.decode("ascii")
    n_dimensions = cursor.u32()
    if n_dimensions > _MAX_DIMENSIONS:
        raise cursor.error(f"tensor {name!r} has {n_dimensions} dimensions; expected at most 4")
    shape = tuple(cursor.u64() for _ in range(n_dimensions))
    type_id = cursor.u32()
    if type_id not in TENSOR_TYPES:
        raise cursor.error(f"tensor {name!r} has type {type_id}, which no model file should hold")
    _, block_size, block_bytes = TENSOR_TYPES[type_id]
    n_elements = math.prod(shape)
    if n_elements < 1 or (shape or (1,))[0] % block_size:
        raise cursor.error(f"tensor {name!r} of type {type_id} has the impossible shape {shape}")
    # Python's integers do not overflow; ggml's do, where a product passes 2**63.
    size_bytes = n_elements // block_size * block_bytes
    if size_bytes > cursor.size_bytes:
        raise cursor.error(f"tensor {name!r} has {size_bytes} bytes, more than the file")
    return name, shape, type_id, size_bytes, cursor.u64()


# -- the number formats of a KV cache --------------------------------------------------------------

KvType = Literal["f16", "q8_0", "q4_0"]
# Bytes of a block, and numbers in it (ggml-common.h); the widest first.
KV_BLOCKS: Final[dict[KvType, tuple[int, int]]] = {
    "f16": (2, 1),
    "q8_0": (34, 32),
    "q4_0": (18, 32),
}
KV_TYPES: Final[tuple[KvType, ...]] = tuple(KV_BLOCKS)
# enum ggml_type (ggml.h)
GGML_TYPE_OF_KV: Final[dict[KvType, int]] = {"f16": 1, "q8_0": 8, "q4_0": 2}
