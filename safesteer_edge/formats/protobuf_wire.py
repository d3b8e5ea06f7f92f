"""A strict reader of protobuf messages by a given schema.

Protobuf's own parsers merge repeated submessages, let the last value win, keep what they do not
know and cut numbers to size. A checker that reads a file differently from its user is no checker,
so anything that parsers could disagree on is refused: unknown fields, a second value for a single
field, groups, numbers too long for their type. Format: protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE_NAMES = {0: "varint", 1: "64-bit", 2: "length-delimited", 3: "group", 4: "group", 5: "32-bit"}


class ProtobufError(ValueError):
    """The bytes are not a message of the expected kind."""


class Kind(Enum):
    """What a field holds."""

    INTEGER = "integer"
    FLOAT = "float"
    DOUBLE = "double"
    TEXT = "text"
    BYTES = "bytes"
    """Also submessages."""


_WIRE_TYPES = {
    Kind.INTEGER: _VARINT,
    Kind.FLOAT: _FIXED32,
    Kind.DOUBLE: _FIXED64,
    Kind.TEXT: _LENGTH,
    Kind.BYTES: _LENGTH,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message."""

    name: str
    kind: Kind
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """The values of one message, by field name, in the order they came in.

    integers: signed 64-bit. bytes: views into the data, not copies. Numbers of 32 and 64 bits
    stay bytes as well: one each, or many where they were packed.
    """

    integers: Mapping[str, list[int]]
    bytes: Mapping[str, list[memoryview]]

    def integer(self, name: str, default: int = 0) -> int:
        """Return a single number."""
        return self.integers.get(name, [default])[0]

    def view(self, name: str) -> memoryview:
        """Return a single value's bytes, empty if there is none."""
        return self.bytes.get(name, [memoryview(b"")])[0]

    def text(self, name: str) -> str:
        """Return a single text, empty if there is none."""
        return str(self.view(name), "utf-8")


class FieldBudget:
    """How many more values may be read, over all messages of a file."""

    def __init__(self, n_values: int) -> None:
        self._n_left = n_values

    def spend(self, n_values: int = 1) -> None:
        """Take some off. Raises ProtobufError when none are left."""
        self._n_left -= n_values
        if self._n_left < 0:
            raise ProtobufError("it holds too many separate values")


def read_message(data: memoryview, schema: Mapping[int, Field], budget: FieldBudget) -> Message:
    """Return the message's values; submessages are left as bytes, for their own schemas.

    Raises ProtobufError.
    """
    integers: dict[str, list[int]] = {}
    views: dict[str, list[memoryview]] = {}
    for number, wire_type, value in _raw_fields(data):
        budget.spend()
        field = schema.get(number)
        if field is None:
            raise ProtobufError(f"field {number} is not one that a probe needs")
        is_packed = field.is_repeated and wire_type == _LENGTH
        if wire_type != _WIRE_TYPES[field.kind] and not is_packed:
            raise ProtobufError(f"field {field.name!r} is stored as {_WIRE_NAMES[wire_type]}")
        if not field.is_repeated and (field.name in integers or field.name in views):
            raise ProtobufError(f"field {field.name!r} occurs twice")
        if isinstance(value, int):
            integers.setdefault(field.name, []).append(value)
        elif field.kind is Kind.INTEGER:
            integers.setdefault(field.name, []).extend(_unpack(value, budget))
        else:
            if field.kind is Kind.TEXT:
                _check_text(value, field.name)
            views.setdefault(field.name, []).append(value)
    return Message(integers, views)


def _check_text(value: memoryview, name: str) -> None:
    try:
        str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtobufError(f"field {name!r} is not UTF-8") from error


def _raw_fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) until the data ends."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield number, wire_type, value - (1 << 64) if value >> 63 else value
            continue
        if wire_type == _LENGTH:
            size, position = _varint(data, position)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ProtobufError(f"field {number} has wire type {wire_type}")
        if size > len(data) - position:
            raise ProtobufError(f"field {number} is longer than what is left")
        yield number, wire_type, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return (value, next position)."""
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + index + 1
    raise ProtobufError("a number has no end, or more than 64 bits")


def _unpack(data: memoryview, budget: FieldBudget) -> Iterator[int]:
    position = 0
    while position < len(data):
        budget.spend()
        value, position = _varint(data, position)
        yield value - (1 << 64) if value >> 63 else value


def floats_of(view: memoryview) -> tuple[float, ...]:
    """Return 32-bit floats stored one after the other. Raises ProtobufError for a part of one."""
    if len(view) % 4:
        raise ProtobufError("packed floats are not a multiple of 4 bytes")
    return struct.unpack(f"<{len(view) // 4}f", view)
