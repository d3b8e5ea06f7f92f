"""GGUF files put together by hand, so that any part of them can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def text_pair(key: str | bytes, value: str | bytes) -> bytes:
    return string(key) + struct.pack("<I", STRING) + string(value)


def u32_pair(key: str | bytes, value: int) -> bytes:
    return string(key) + struct.pack("<II", U32, value)


def array_pair(key: str, element_type: int, n_elements: int, raw: bytes) -> bytes:
    return string(key) + struct.pack("<IIQ", ARRAY, element_type, n_elements) + raw


def tensor_row(
    name: str | bytes,
    dims: Sequence[int] = (4,),
    ggml_type: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    header = string(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    return header + struct.pack(f"<{len(dims)}QIQ", *dims, ggml_type, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    rows: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these metadata pairs, tensor rows and this data; the counts may lie."""
    counts = (
        len(rows) if n_tensors is None else n_tensors,
        len(pairs) if n_keys is None else n_keys,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(rows)
    return header + (bytes(-len(header) % alignment) + data if rows else data)
