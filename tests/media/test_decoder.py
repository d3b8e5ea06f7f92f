"""Files are decoded in a process that can be ended: it keeps time, memory, and the chat alive."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.errors import MediaError
from safesteer_edge.media import decoder as decoder_module
from safesteer_edge.media.decoder import IMAGE_LIMITS, DecoderLimits, DecoderProcess, MediaDecoder
from safesteer_edge.media.image_decoding import ImageFit
from tests.media.png_bytes import RGB, png_bytes
from tests.media.sample_pictures import (
    HEIGHT,
    SAMPLES,
    WIDTH,
    letterbox,
    load_image,
    scene,
    write_sample,
)

SIDE = 56
PATIENT = replace(IMAGE_LIMITS, decode_s=120)  # the machine may be busy


@pytest.fixture(scope="module")
def decoder() -> Iterator[MediaDecoder]:
    with MediaDecoder(image_limits=PATIENT) as shared:
        yield shared


@pytest.fixture(scope="module")
def square_decoder() -> Iterator[MediaDecoder]:
    with MediaDecoder(ImageFit(SIDE), image_limits=PATIENT) as shared:
        yield shared


@pytest.mark.parametrize("name", SAMPLES)
def test_each_kind_of_picture_is_what_it_is_in_this_process(
    decoder: MediaDecoder, tmp_path: Path, name: str
):
    """The child has shut itself off from the disk by then: nothing may be left to load."""
    path = write_sample(tmp_path, name)
    image, expected = decoder.load_image(path), load_image(path)
    np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert image.sha256 == expected.sha256
    assert (image.width, image.height) == (image.original_width, image.original_height)


@pytest.mark.parametrize("name", [name for name in SAMPLES if "transparent" not in name])
def test_a_picture_for_a_square_projector_is_letterboxed(
    square_decoder: MediaDecoder, tmp_path: Path, name: str
):
    path = write_sample(tmp_path, name)
    image, whole = square_decoder.load_image(path), load_image(path)
    off_by = np.abs(image.pixels.astype(int) - letterbox(whole.pixels, SIDE))
    assert off_by.max() <= 2  # one that lies on its side is scaled before it is turned
    assert (image.original_width, image.original_height) == (whole.width, whole.height)


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (760, 760)])
def test_a_large_jpeg_is_read_at_a_fraction_and_looks_the_same(
    square_decoder: MediaDecoder, tmp_path: Path, size: tuple[int, int]
):
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size).save(tmp_path / "a.jpg", quality=95)
    image = square_decoder.load_image(tmp_path / "a.jpg")
    expected = letterbox(load_image(tmp_path / "a.jpg").pixels, SIDE)
    assert np.abs(image.pixels.astype(int) - expected).mean() < 1
    assert (image.original_width, image.original_height) == size


def test_what_is_transparent_lies_on_white_in_a_square_too(
    square_decoder: MediaDecoder, tmp_path: Path
):
    rgba = np.zeros((100, 100, 4), dtype=np.uint8)
    rgba[:, :50, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = square_decoder.load_image(tmp_path / "a.png").pixels
    assert (pixels[:, :26] < 5).all()
    assert (pixels[:, 30:] > 250).all()


def test_a_picture_is_turned_and_then_letterboxed(square_decoder: MediaDecoder, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "a.jpg", exif=exif)
    image = square_decoder.load_image(tmp_path / "a.jpg")
    assert (image.original_width, image.original_height) == (40, 80)
    assert (image.pixels[:, :13] == 255).all()
    assert (image.pixels[:, 15:41] < 5).all()


def test_a_picture_beyond_use_is_scaled_down_and_a_small_one_is_not(tmp_path: Path):
    Image.new("RGB", (400, 100), "teal").save(tmp_path / "a.png")
    Image.new("RGB", (40, 10), "teal").save(tmp_path / "b.png")
    with MediaDecoder(ImageFit(max_pixels=10_000), image_limits=PATIENT) as decoder:
        large = decoder.load_image(tmp_path / "a.png")
        small = decoder.load_image(tmp_path / "b.png")
    assert (large.width, large.height) == (200, 50)
    assert (large.original_width, large.original_height) == (400, 100)
    assert (small.width, small.height) == (40, 10)


def white_picture(folder: Path, side: int = 7_000) -> Path:
    path = folder / f"white-{side}.png"
    rows = (b"\0" + b"\xff" * 3 * side) * side
    path.write_bytes(png_bytes(side, side, bit_depth=8, color_type=RGB, pixels=rows))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_file_that_takes_too_long_is_given_up():
    process = DecoderProcess("image", DecoderLimits(decode_s=3.0))
    request = {"name": "'a.png'", "square_side": None, "max_pixels": 100}
    data = png_bytes(2, 2, bit_depth=8, color_type=RGB, pixels=(b"\0" + b"\xff" * 6) * 2)
    process.decode(request, data)
    os.kill(process.process_id, signal.SIGSTOP)
    with pytest.raises(MediaError, match=r"image 'a\.png' takes more than 3 s to decode"):
        process.decode(request, data)
    assert not process.is_alive
    process.close()


def test_a_jpeg_of_a_quarter_million_scans_is_given_up(tmp_path: Path):
    """Each passes over the whole picture: minutes of work in 20 MB, and no damage to be found."""
    path = tmp_path / "scans.jpg"
    Image.new("L", (4_000, 4_000), 128).save(path, progressive=True, quality=50)
    data = path.read_bytes()
    scan = data[data.rfind(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + scan * ((19 << 20) // len(scan)) + data[-2:])
    with MediaDecoder(ImageFit(SIDE), image_limits=DecoderLimits(decode_s=4.0)) as decoder:
        with pytest.raises(MediaError, match=r"scans\.jpg' takes more than 4 s to decode"):
            decoder.load_image(path)
        assert decoder.load_image(white_picture(tmp_path, 2)).original_width == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to RLIMIT_AS")
def test_a_file_that_needs_too_much_memory_is_refused(tmp_path: Path):
    limits = replace(PATIENT, memory_bytes=120 << 20)
    with MediaDecoder(image_limits=limits) as decoder:
        with pytest.raises(MediaError, match=r"white-7000\.png"):
            decoder.load_image(white_picture(tmp_path))
        assert decoder.load_image(white_picture(tmp_path, 2)).width == 2


@pytest.mark.parametrize("name", ["turned.heic", "turned.avif"])
def test_pictures_of_phones_come_upright(decoder: MediaDecoder, tmp_path: Path, name: str):
    image = decoder.load_image(write_sample(tmp_path, name))
    assert (image.width, image.height) == (HEIGHT, WIDTH)
    turned = np.asarray(scene().transpose(Image.Transpose.ROTATE_270), dtype=int)
    assert np.abs(image.pixels - turned).mean() < 8


def test_without_its_extra_heic_is_refused_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_sample(tmp_path, "turned.heic")
    monkeypatch.setattr(decoder_module, "HEIF_PACKAGE", "no_such_package_anywhere")
    with (
        MediaDecoder() as decoder,
        pytest.raises(MediaError, match=r"pip install 'safesteer-edge\[heic\]'"),
    ):
        decoder.load_image(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prlimit")
@pytest.mark.parametrize(("name", "may_start"), [("rgb.png", False), ("turned.heic", True)])
def test_only_the_process_that_decodes_heic_may_start_threads(
    tmp_path: Path, name: str, may_start: bool
):
    import resource

    kind = "heif" if may_start else "image"
    process = DecoderProcess(kind, IMAGE_LIMITS)
    request = {"name": "'a'", "square_side": None, "max_pixels": 10_000}
    process.decode(request, write_sample(tmp_path, name).read_bytes())
    n_processes, _ = resource.prlimit(process.process_id, resource.RLIMIT_NPROC)
    n_files, _ = resource.prlimit(process.process_id, resource.RLIMIT_NOFILE)
    process.close()
    assert (n_processes != 0, n_files) == (may_start, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_picture_stays_far_below_a_gibibyte(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (7_000, 7_000)).save(path, compress_level=1)
    process = DecoderProcess("image", PATIENT)
    request = {"name": "a", "square_side": None, "max_pixels": ImageFit().max_pixels}
    process.decode(request, path.read_bytes())
    status = Path(f"/proc/{process.process_id}/status").read_text()
    process.close()
    peak_kib = int(status.split("VmHWM:")[1].split()[0])
    assert peak_kib < 800 << 10


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_decoder_that_dies_costs_one_file_at_most(tmp_path: Path, when: str):
    quick = white_picture(tmp_path, 2)
    process = DecoderProcess("image", PATIENT)
    request = {"name": "'a.png'", "square_side": None, "max_pixels": 100}
    process.decode(request, quick.read_bytes())
    if when == "before":
        os.kill(process.process_id, signal.SIGSEGV)
    else:
        del request["max_pixels"]  # an error of ours in the child, which ends it
    with pytest.raises(MediaError, match=r"image 'a\.png' ended the process"):
        process.decode(request, quick.read_bytes())
    assert not process.is_alive
    process.close()


def test_a_dead_decoder_is_replaced(tmp_path: Path, decoder: MediaDecoder):
    quick = white_picture(tmp_path, 2)
    decoder.load_image(quick)
    decoder.close()
    decoder.close()
    assert decoder.load_image(quick).width == 2


def test_a_name_keeps_no_control_character_in_a_message(decoder: MediaDecoder, tmp_path: Path):
    path = tmp_path / "a\x1b]0;owned\x07\u202egnp.png"
    path.write_bytes(struct.pack(">I", 7) * 9)
    with pytest.raises(MediaError) as caught:
        decoder.load_image(path)
    assert str(caught.value).isprintable()
