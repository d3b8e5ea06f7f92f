"""A picture's file without what does not decide its pixels: damage there is none to the picture.

Texts, colour profiles and times are dropped anyway; Pillow parses them first, and gives the whole
file up where one is damaged or unpacks to much.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from typing import Final

from PIL.PngImagePlugin import PngStream

PNG_START: Final = b"\x89PNG\r\n\x1a\n"
JPEG_START: Final = b"\xff\xd8\xff"

_APP_JFIF, _APP_EXIF, _APP_ADOBE = 0xE0, 0xE1, 0xEE  # JPEG's markers
# The scan's, those without a length, and those that are none: Pillow finds its way from there.
_LAST_MARKERS = (b"", b"\0", b"\1", *(bytes((n,)) for n in (*range(0xD0, 0xDB), 0xFF)))
_GREY, _RGB = 0, 2  # PNG's colour types
# Where programs write how a picture is to be turned, beside eXIf.
_TURNING = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp")
# The registered names; a chunk's length stands in front of its name.
_NAME = re.compile(
    b"(?=PLTE|IDAT|IEND|acTL|bKGD|cHRM|cICP|eXIf|fcTL|fdAT|gAMA|hIST|iCCP|iTXt|pHYs|sBIT|sPLT|sRGB"
    b"|tEXt|tIME|tRNS|zTXt)"
)


def pixel_bytes(data: bytes) -> bytes:
    """The same picture; other formats than PNG and JPEG as they are.

    Wrong checksums and lengths of what is left out are forgiven; the rest is for Pillow to judge.
    """
    if data.startswith(PNG_START):
        return _pixel_chunks(data)
    return _pixel_segments(data) if data.startswith(JPEG_START) else data


def _pixel_segments(data: bytes) -> bytes:
    """Of a JPEG, all but application data and comments in front of its first scan."""
    kept = [data[:2]]
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in _LAST_MARKERS:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if _decides_pixels(data[at + 1], end - at - 4):
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[data.find(b"\xff", at) :]))  # behind a wrong length


def _decides_pixels(marker: int, n_bytes: int) -> bool:
    """Whether libjpeg guesses the colours by a segment, or Pillow which way up the picture is."""
    if marker in (_APP_JFIF, _APP_ADOBE):
        return n_bytes >= (14 if marker == _APP_JFIF else 12)  # libjpeg's own condition
    return marker == _APP_EXIF or not (_APP_JFIF <= marker <= 0xEF or marker == 0xFE)


def _pixel_chunks(data: bytes) -> bytes:
    """Of a PNG, what is critical, its transparency, and which way up it is."""
    kept = [PNG_START]
    at = len(PNG_START)
    depth, color_type = data[24:26] if len(data) >= 26 else (8, _RGB)
    while at + 8 <= len(data):
        name = data[at + 4 : at + 8]
        if name[0] & 0x20:
            end = _end_of(data, at)
            body = data[at + 8 : end - 4]
            if name == b"tRNS":
                kept.append(_chunk(name, _in_8_bits(body, depth, color_type)))
            elif name == b"eXIf" or _tells_turning(name, body):
                kept.append(_chunk(name, body))
        else:
            end = _told_end(data, at) or len(data)
            kept.append(data[at:end])
        at = len(data) if name == b"IEND" else end
    return b"".join(kept)


def _end_of(data: bytes, at: int) -> int:
    """Where the chunk that begins there ends, by its length or by where the next one begins."""
    end = _told_end(data, at)
    name = data[end + 4 : end + 8]
    if end == len(data) or _NAME.match(name) or (name.isalpha() and _told_end(data, end)):
        return end
    begins = (found.start() - 4 for found in _NAME.finditer(data, at + 12))
    return next((begin for begin in begins if _told_end(data, begin)), len(data))


def _told_end(data: bytes, at: int) -> int:
    """Where a chunk ends by its length; 0: behind the end of the file."""
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    return end if end <= len(data) else 0


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def _in_8_bits(body: bytes, depth: int, color_type: int) -> bytes:
    """A transparent colour as Pillow compares it with the pixels, which are 8 bits by then.

    16 bits of grey stay.
    """
    if color_type == _GREY and depth in (2, 4):
        most = (1 << depth) - 1
        return struct.pack(">H", (int.from_bytes(body[:2], "big") & most) * 255 // most)
    if color_type == _RGB and depth == 16:
        return b"".join(bytes((0, high)) for high in body[0:6:2])
    return body


def _tells_turning(name: bytes, body: bytes) -> bool:
    """Whether a text tells it, and is one that Pillow takes."""
    if name not in (b"tEXt", b"zTXt", b"iTXt") or body.split(b"\0", 1)[0] not in _TURNING:
        return False
    try:
        PngStream(BytesIO(body)).call(name, 0, len(body))
    except Exception:  # whatever a damaged one provokes
        return False
    return True
