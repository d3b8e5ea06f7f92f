"""PNG files made by hand: headers and depths that Pillow does not write."""

from __future__ import annotations

import struct
import zlib

GREY, RGB, GREY_ALPHA = 0, 2, 4


def png_bytes(
    width: int,
    height: int,
    *,
    bit_depth: int,
    color_type: int,
    pixels: bytes,
    transparent: bytes | None = None,
) -> bytes:
    """Return a PNG file of this header; pixels: its rows, each begun with a filter byte of 0.

    transparent: what its tRNS chunk holds.
    """
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (b"" if transparent is None else chunk(b"tRNS", transparent))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
