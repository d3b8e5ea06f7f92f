"""What is dropped anyway does not decide whether a picture is read, nor what is seen in it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from safesteer_edge.errors import MediaError
from safesteer_edge.media.decoder import MediaDecoder
from tests.media.png_bytes import chunk
from tests.media.sample_pictures import load_image, scene

_HUGE = zlib.compress(bytes(5 << 20))
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    b"<?xpacket end='w'?>"
)
ANCILLARY = {
    b"zTXt": b"Comment\0\0" + _HUGE,
    b"iTXt": b"Comment\0\x01\0\0\0" + _HUGE,
    b"iCCP": b"sRGB\0\0" + _HUGE,
    b"tEXt": b"transparency\0none",
    b"gAMA": b"\0",
    b"pHYs": b"\0",
    b"eXIf": b"MM\0*\xff\xff\xff\xff",
    b"acTL": b"\0\0",
    b"fcTL": bytes(3),
    b"vpAg": bytes(9),
}


def png(image: Image.Image, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def transparent() -> bytes:
    """A palette with transparent colours, turned by its eXIf: chunks that decide pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = scene().quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return png(image, exif=exif)


def chunks_of(data: bytes) -> list[tuple[bytes, int, int]]:
    """Name, begin and end of each chunk."""
    found, at = [], 8
    while at < len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        found.append((data[at + 4 : at + 8], at, end))
        at = end
    return found


def assert_same(folder: Path, damaged: bytes, clean: bytes):
    (folder / "damaged").write_bytes(damaged)
    (folder / "clean").write_bytes(clean)
    expected = load_image(folder / "clean")
    image = load_image(folder / "damaged")
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert image.sha256 == expected.sha256


@pytest.mark.parametrize("name", ANCILLARY)
@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
def test_a_png_is_read_whatever_stands_in_its_other_chunks(
    tmp_path: Path, name: bytes, where: bytes
):
    clean = png(scene())
    at = next(begin for kind, begin, _ in chunks_of(clean) if kind == where)
    assert_same(tmp_path, clean[:at] + chunk(name, ANCILLARY[name]) + clean[at:], clean)


def _wrong_checksum(data: bytes, at: int, end: int) -> bytes:
    return data[: end - 4] + bytes((data[end - 4] ^ 1,)) + data[end - 3 :]


def _length(change: int) -> Callable[[bytes, int, int], bytes]:
    def change_length(data: bytes, at: int, end: int) -> bytes:
        told = struct.pack(">I", max(0, end - at - 12 + change))
        return data[:at] + told + data[at + 4 :]

    return change_length


@pytest.mark.parametrize(
    "damage", [_wrong_checksum, _length(-1), _length(1), _length(10_000), _length(2**31)]
)
def test_wrong_checksums_and_lengths_of_a_png_change_no_pixel(
    tmp_path: Path, damage: Callable[[bytes, int, int], bytes]
):
    """In any chunk that is not critical, also in the two that decide pixels."""
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "a text " * 40)
    told.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    for clean in (transparent(), png(scene(), pnginfo=told, icc_profile=bytes(200), dpi=(72, 72))):
        ancillary = [found for found in chunks_of(clean) if found[0][0] & 0x20]
        assert len(ancillary) >= 2
        for _, at, end in ancillary:
            assert_same(tmp_path, damage(clean, at, end), clean)


@pytest.mark.parametrize("keyword", ["XML:com.adobe.xmp", "Raw profile type exif"])
def test_a_png_is_turned_upright_by_its_texts_too(tmp_path: Path, keyword: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    told = PngImagePlugin.PngInfo()
    text = XMP.decode() if keyword.startswith("XML") else f"\nexif\n{len(raw):8}\n{raw.hex()}\n"
    told.add_itxt(keyword, text, zip=True)
    (tmp_path / "a.png").write_bytes(png(scene(), pnginfo=told))
    image = load_image(tmp_path / "a.png")
    turned = scene().transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(image.pixels, np.asarray(turned))


def test_a_png_whose_pixels_are_cut_off_is_refused(tmp_path: Path):
    clean = png(scene())
    (tmp_path / "a.png").write_bytes(clean[: clean.index(b"IDAT") + 200])
    with pytest.raises(MediaError, match=r"a\.png': it is damaged or incomplete"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xED, b"Photoshop 3.0\x008BIM"),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0"),
        (0xE0, b"JFIF\0"),
        (0xEE, b"Adobe\0"),
        (0xFE, b"\xff\xda\xff"),
    ],
)
def test_a_jpeg_is_read_whatever_stands_in_its_other_segments(
    tmp_path: Path, marker: int, body: bytes
):
    stream = BytesIO()
    scene().save(stream, "JPEG")
    clean = stream.getvalue()
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    assert_same(tmp_path, clean[:2] + segment + clean[2:], clean)


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}],
)
def test_a_jpeg_needs_no_end_marker_and_all_of_the_rest(tmp_path: Path, options: dict[str, Any]):
    """Cut at each of the last 300 places: what is read is the whole picture."""
    stream = BytesIO()
    scene().resize((120, 84)).save(stream, "JPEG", **options)
    clean = stream.getvalue()
    assert_same(tmp_path, clean[:-2], clean)
    assert_same(tmp_path, clean[:-1], clean)
    n_refused = 0
    for n_cut in range(3, 300):
        try:
            assert_same(tmp_path, clean[:-n_cut], clean)
        except MediaError as error:
            assert "damaged or incomplete" in str(error)
            n_refused += 1
    assert n_refused >= 290


def test_a_jpeg_without_its_end_is_read_in_the_decoding_process(tmp_path: Path):
    scene().resize((400, 280)).save(tmp_path / "a.jpg")
    whole = tmp_path / "a.jpg"
    (tmp_path / "b.jpg").write_bytes(whole.read_bytes()[:-2])
    with MediaDecoder() as decoder:
        assert decoder.load_image(tmp_path / "b.jpg").sha256 == decoder.load_image(whole).sha256
