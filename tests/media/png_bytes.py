"""PNG files made by hand: headers and depths that Pillow does not write."""

from __future__ import annotations

import struct
import zlib

GREY, RGB, GREY_ALPHA = 0, 2, 4


def png_bytes(width: int, height: int, *, bit_depth: int, color_type: int, pixels: bytes) -> bytes:
    """Return a PNG file of this header; pixels: its rows, each begun with a filter byte of 0."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(pixels))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
