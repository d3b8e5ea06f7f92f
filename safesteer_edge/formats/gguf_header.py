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
from typing import BinaryIO, TypeAlias

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.ggml_types import (
    ARRAY_TYPE,
    SCALAR_TYPES,
    STRING_TYPE,
    TENSOR_TYPES,
    VALUE_TYPE_NAMES,
)

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
