"""The numbers of an ONNX tensor, wherever in the message they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.formats.protobuf_wire import Message, ProtobufError

# TensorProto.DataType → NumPy. Text, complex numbers and the types below a byte are left out.
DATA_TYPES: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
_RAW_TYPES: Final = {
    "float32": "<f4",
    "uint8": "<u1",
    "int8": "<i1",
    "uint16": "<u2",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "bool": "<u1",
    "float16": "<f2",
    "float64": "<f8",
    "uint32": "<u4",
    "uint64": "<u8",
}
# Where numbers are that are not in raw_data.
_TYPED_FIELDS: Final = {
    **dict.fromkeys(("uint8", "int8", "uint16", "int16", "int32", "bool", "float16"), "int32_data"),
    **dict.fromkeys(("uint32", "uint64"), "uint64_data"),
    "int64": "int64_data",
    "float32": "float_data",
    "float64": "double_data",
}
_CONTENT_FIELDS: Final = ("raw_data", *dict.fromkeys(_TYPED_FIELDS.values()))


@dataclass(frozen=True, slots=True)
class TensorContents:
    """A tensor: its shape, and its numbers in one row, as the type that they have in memory."""

    shape: tuple[int, ...]
    values: NDArray[Any]


def read_tensor(tensor: Message, where: str) -> TensorContents:
    """Return a tensor's numbers, without copying those in raw data.

    where: what error messages call the tensor.
    Raises ProtobufError if type, shape and numbers do not fit together.
    """
    type_id = tensor.integer("data_type")
    if type_id not in DATA_TYPES:
        raise ProtobufError(f"{where} has data type {type_id}")
    shape = tuple(tensor.integers.get("dims", []))
    if any(size < 0 for size in shape):
        raise ProtobufError(f"{where} has the shape {shape}")
    fields = [name for name in _CONTENT_FIELDS if name in tensor.bytes or name in tensor.integers]
    dtype = DATA_TYPES[type_id]
    if len(fields) != 1 or fields[0] not in ("raw_data", _TYPED_FIELDS[dtype]):
        raise ProtobufError(f"{where} of type {dtype} has its numbers in {fields}")
    values = _values(tensor, fields[0], dtype, where)
    if values.size != math.prod(shape):
        raise ProtobufError(f"{where} of shape {shape} has {values.size} numbers")
    return TensorContents(shape, values)


def _values(tensor: Message, field: str, dtype: str, where: str) -> NDArray[Any]:
    raw_type = np.dtype(_RAW_TYPES[dtype])
    if field in tensor.bytes:  # raw_data, float_data or double_data
        views = tensor.bytes[field]
        raw = views[0] if len(views) == 1 else b"".join(views)
        if len(raw) % raw_type.itemsize:
            raise ProtobufError(f"{where} has a part of a number at its end")
        return np.frombuffer(raw, raw_type)
    numbers = tensor.integers[field]
    stored_type = np.dtype("<u2") if dtype == "float16" else raw_type  # float16: its bits
    bounds = np.iinfo(stored_type)
    if any(not bounds.min <= number <= bounds.max for number in numbers):
        raise ProtobufError(f"{where} has a number that is no {dtype}")
    return np.frombuffer(np.array(numbers, stored_type).tobytes(), raw_type)
