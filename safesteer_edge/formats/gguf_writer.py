"""A small GGUF v3 file of texts, counts and F32 tensors, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 32
_U32_TYPE, _STRING_TYPE, _F32_TENSOR = 4, 8, 0


def encode_gguf(
    metadata: Mapping[str, str | int],
    tensors: Sequence[tuple[str, NDArray[np.float32]]],
) -> bytes:
    """Return the file's bytes; the same arguments give the same bytes.

    metadata: texts, and whole numbers that are written as u32. tensors: (name, 1-D array).
    Source: github.com/ggml-org/ggml, docs/gguf.md.
    """
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key)
        if isinstance(value, str):
            header += struct.pack("<I", _STRING_TYPE) + _string(value)
        else:
            header += struct.pack("<II", _U32_TYPE, value)
    offset = 0
    for name, values in tensors:
        header += _string(name) + struct.pack("<IQIQ", 1, values.size, _F32_TENSOR, offset)
        offset += _padded(4 * values.size)
    header += bytes(_padded(len(header)) - len(header))
    return bytes(header) + b"".join(_tensor_bytes(values) for _, values in tensors)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _tensor_bytes(values: NDArray[np.float32]) -> bytes:
    raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return raw + bytes(_padded(len(raw)) - len(raw))


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % _ALIGNMENT
