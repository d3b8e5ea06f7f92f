"""Pictures from anywhere become upright RGB pixels, or one line that says what is wrong."""

from __future__ import annotations

import os
import random
import struct
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.errors import MediaError
from safesteer_edge.media.image_decoding import FORMATS
from tests.media import sample_pictures
from tests.media.png_bytes import GREY, GREY_ALPHA, RGB, png_bytes
from tests.media.sample_pictures import load_image

ORIENTATION = 0x0112
TURN_CLOCKWISE = 6

# Red, green / blue, yellow: one pixel each, in blocks of 8 so that JPEG keeps them.
CORNERS = np.array(
    [[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 10)]], dtype=np.uint8
)
QUARTERS = CORNERS.repeat(8, axis=0).repeat(8, axis=1)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def corners_of(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    return pixels[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_format_gives_the_pixels_that_were_saved(tmp_path: Path, name: str):
    options = {"lossless": True} if name == "WEBP" else {}
    path = save(tmp_path / "picture", Image.fromarray(QUARTERS), format=name, **options)
    image = load_image(path)
    assert (image.width, image.height, image.name) == (16, 16, "picture")
    assert image.pixels.dtype == np.uint8
    off_by = np.abs(corners_of(image.pixels).astype(int) - CORNERS).max()
    assert off_by <= {"JPEG": 40, "AVIF": 40}.get(name, 0)


@pytest.mark.parametrize("name", ["PPM", "ICO", "TGA", "PDF"])
def test_a_format_that_is_not_listed_is_refused(tmp_path: Path, name: str):
    path = save(tmp_path / "picture.png", Image.fromarray(QUARTERS), format=name)
    with pytest.raises(MediaError, match=r"none of PNG, JPEG.*; convert it"):
        load_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str):
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:, :2, 3] = 255  # the left half is solid black
    path = save(tmp_path / "a.png", Image.fromarray(rgba).convert(mode))
    pixels = load_image(path).pixels
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 2:] == 255).all()


def test_half_transparent_black_becomes_grey(tmp_path: Path):
    path = save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (0, 0, 0, 128)))
    assert np.abs(load_image(path).pixels.astype(int) - 127).max() <= 1


def test_a_palette_with_a_transparent_colour_is_read(tmp_path: Path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 200, 30, 1, 2, 3])
    image.putpixel((0, 0), 1)
    path = save(tmp_path / "a.gif", image, transparency=1)
    pixels = load_image(path).pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [10, 200, 30]


def test_only_the_first_frame_of_an_animation_is_read(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_image(path).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_upright_by_its_exif_data(tmp_path: Path, name: str):
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    lying = Image.fromarray(QUARTERS[:, :8])  # 8 wide, 16 high: red above blue
    image = load_image(save(tmp_path / "a", lying, format=name, exif=exif))
    assert (image.width, image.height) == (16, 8)
    left, right = image.pixels[4, 4].astype(int), image.pixels[4, 12].astype(int)
    assert np.abs(left - CORNERS[1, 0]).max() <= 40  # what was below is now on the left
    assert np.abs(right - CORNERS[0, 0]).max() <= 40


def test_damaged_exif_data_neither_stops_a_picture_nor_is_talked_about(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    stream = BytesIO()
    Image.fromarray(QUARTERS).save(stream, "JPEG", exif=exif)
    data = bytearray(stream.getvalue())
    start = data.index(b"Exif\x00\x00") + 6
    data[start + 8 : start + 10] = struct.pack("<H", 0xFFFF)  # 65,535 entries in a few bytes
    (tmp_path / "a.jpg").write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_image(tmp_path / "a.jpg")
    assert caught == []
    assert capfd.readouterr().err == ""


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path):
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = save(tmp_path / "a.png", Image.fromarray(shades))
    pixels = load_image(path).pixels
    np.testing.assert_array_equal(pixels[..., 0], shades >> 8)
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize(
    ("color_type", "pixel", "expected"),
    [
        (RGB, (0x8000, 0x00FF, 0xFF00), (0x80, 0x00, 0xFF)),
        (GREY, (0x8000,), (0x80, 0x80, 0x80)),
        (GREY_ALPHA, (0x0000, 0xFFFF), (0, 0, 0)),
    ],
)
def test_each_kind_of_sixteen_bit_png_is_read(
    tmp_path: Path, color_type: int, pixel: tuple[int, ...], expected: tuple[int, ...]
):
    rows = (b"\0" + struct.pack(f">{len(pixel)}H", *pixel) * 4) * 4
    (tmp_path / "a.png").write_bytes(
        png_bytes(4, 4, bit_depth=16, color_type=color_type, pixels=rows)
    )
    assert load_image(tmp_path / "a.png").pixels[0, 0].tolist() == list(expected)


@pytest.mark.parametrize(
    ("color_type", "bit_depth", "row", "key"),
    [
        (GREY, 1, [0b0101_0000], [1]),
        (GREY, 2, [0b00_01_11_01], [1]),
        (GREY, 4, [0x03, 0xF3], [3]),
        (GREY, 8, [0, 3, 255, 3], [3]),
        (GREY, 16, [0, 0x1234, 0xFFFF, 0x1234], [0x1234]),
        (RGB, 8, [0] * 3 + [9, 8, 7] + [255] * 3 + [9, 8, 7], [9, 8, 7]),
        (RGB, 16, [0] * 3 + [0x1234, 9, 8] + [0xFFFF] * 3 + [0x1234, 9, 8], [0x1234, 9, 8]),
    ],
)
def test_a_transparent_colour_becomes_white_at_every_depth(
    tmp_path: Path, color_type: int, bit_depth: int, row: list[int], key: list[int]
):
    packed = struct.pack(f">{len(row)}{'H' if bit_depth == 16 else 'B'}", *row)
    data = png_bytes(
        4,
        2,
        bit_depth=bit_depth,
        color_type=color_type,
        pixels=(b"\0" + packed) * 2,
        transparent=struct.pack(f">{len(key)}H", *key),
    )
    (tmp_path / "a.png").write_bytes(data)
    pixels = load_image(tmp_path / "a.png").pixels
    expected = [0, 255, 0, 255] if bit_depth == 1 else [0, 255, 255, 255]
    np.testing.assert_array_equal(pixels[0], np.repeat(expected, 3).reshape(4, 3))


@pytest.mark.parametrize("values", [(0, 255), (0, 1_966_050_000), (-(2**31), 2**31 - 1), (-7, 9)])
def test_shades_of_32_bits_are_scaled_by_their_range(tmp_path: Path, values: tuple[int, int]):
    low, high = values
    shades = np.linspace(low, high, 64).round().astype(np.int32).reshape(8, 8)
    path = save(tmp_path / "a.tif", Image.fromarray(shades))
    pixels = load_image(path).pixels[..., 0].astype(int)
    assert np.abs(pixels - (shades.astype(float) - low) * (255 / (high - low))).max() <= 1


def test_shades_of_32_bits_without_a_range_are_refused(tmp_path: Path):
    path = save(tmp_path / "a.tif", Image.new("I", (4, 4), 7))
    with pytest.raises(MediaError, match="32-bit numbers; convert it to 8 bits"):
        load_image(path)
    with pytest.raises(MediaError, match="floating-point numbers; convert it to 8 bits"):
        load_image(save(tmp_path / "f.tif", Image.new("F", (4, 4), 7)))


def test_twelve_bits_of_grey_reach_white(tmp_path: Path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((2, 2), np.uint16)))
    data = path.read_bytes()
    told, wanted = (struct.pack("<HHIH", 258, 3, 1, bits) for bits in (16, 12))
    at = data.rindex(bytes(8))  # the pixels
    rows = bytes.fromhex("fff000 800fff 0000")  # 4095, 0 / 2048, 4095
    path.write_bytes((data[:at] + rows).replace(told, wanted))
    np.testing.assert_array_equal(load_image(path).pixels[..., 0], [[255, 0], [128, 255]])


def test_sixteen_bits_of_grey_may_count_from_white(tmp_path: Path):
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = save(tmp_path / "a.tif", Image.fromarray(shades))
    told = struct.pack("<HHIH", 262, 3, 1, 1)
    path.write_bytes(path.read_bytes().replace(told, struct.pack("<HHIH", 262, 3, 1, 0)))
    np.testing.assert_array_equal(load_image(path).pixels[..., 0], 255 - (shades >> 8))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_what_is_said_of_a_damaged_file_is_no_word_of_a_library(tmp_path: Path, name: str):
    stream = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, name)
    data = stream.getvalue()
    said = set()
    for n_kept in (*range(0, 60, 7), *range(60, len(data) - 200, len(data) // 20)):
        (tmp_path / "a").write_bytes(data[:n_kept])
        try:
            load_image(tmp_path / "a")
        except MediaError as error:
            said.add(
                str(error).replace(repr(str(tmp_path / "a")), "…").replace("AVIF, HEIF", "AVIF")
            )
    assert said <= {
        "image … is an empty file; get it again",
        "cannot decode image …: it is damaged or incomplete; get it or save it again",
        f"cannot use … as an image: it is none of {', '.join(FORMATS)}, or damaged; convert it",
        *(
            f"cannot use … as an image: it is {kind} that is damaged, or of a rare kind; save it "
            "again as PNG"
            for kind in ("a PNG", "a JPEG", "a GIF", "a TIFF", "a WebP")
        ),
    }


def test_the_hash_is_of_the_pixels_alone(tmp_path: Path):
    picture = Image.fromarray(QUARTERS)
    one = load_image(save(tmp_path / "one.png", picture))
    other = load_image(save(tmp_path / "other.bmp", picture))
    tall = load_image(save(tmp_path / "tall.png", Image.fromarray(QUARTERS.reshape(32, 8, 3))))
    assert one.sha256 == other.sha256
    assert tall.sha256 != one.sha256  # the same bytes in another shape


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_that_was_cut_off_is_refused(tmp_path: Path, name: str):
    stream = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, name)
    (tmp_path / "a").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(MediaError, match=r"image '.*a'"):
        load_image(tmp_path / "a")


@pytest.mark.parametrize("side", [7_100, 12_000, 30_000, 2**31 - 1])
def test_a_header_that_claims_a_huge_picture_is_refused(tmp_path: Path, side: int):
    bomb = png_bytes(side, side, bit_depth=8, color_type=RGB, pixels=b"\0" * 100)
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(MediaError, match=r"bomb\.png.* limit .*50000000 pixels; shrink it first"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("size", "problem"), [((401, 20), "20 times"), ((20, 401), "20 times"), ((1, 1), "2 pixels")]
)
def test_a_picture_of_an_impossible_shape_is_refused(
    tmp_path: Path, size: tuple[int, int], problem: str
):
    with pytest.raises(MediaError, match=problem):
        load_image(save(tmp_path / "a.png", Image.new("RGB", size)))


def test_the_most_oblong_and_the_smallest_picture_are_read(tmp_path: Path):
    assert load_image(save(tmp_path / "a.png", Image.new("RGB", (400, 20)))).width == 400
    assert load_image(save(tmp_path / "b.png", Image.new("RGB", (2, 2)))).height == 2


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes):
    (tmp_path / "note.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"note\.png"):
        load_image(tmp_path / "note.png")


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(MediaError, match="No such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="not a file"):
        load_image(tmp_path)
    with pytest.raises(MediaError, match="check the path"):
        load_image(Path("a\0b.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match="not a file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_file_that_cannot_be_read_is_refused():
    with pytest.raises(MediaError, match="/proc/self/mem"):
        load_image(Path("/proc/self/mem"))


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(tmp_path / "a.bmp", Image.fromarray(QUARTERS))
    monkeypatch.setattr(sample_pictures, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(MediaError, match="the limit is 100"):
        load_image(path)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_files_end_in_pixels_or_a_media_error(tmp_path: Path, name: str):
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    stream = BytesIO()
    options = {"exif": exif} if name in ("PNG", "JPEG", "WEBP") else {}
    Image.fromarray(QUARTERS).save(stream, name, **options)
    rng = random.Random(name)
    path = tmp_path / "a"
    for _ in range(60):
        data = bytearray(stream.getvalue())
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(8, len(data))))])
        try:
            pixels = load_image(path).pixels
        except MediaError as error:
            assert "\n" not in str(error)
        else:
            assert pixels.ndim == 3
