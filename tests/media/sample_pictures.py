"""Good pictures of every kind that is read: the same scene in formats, depths and colour models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

from safesteer_edge.media.decoder import MAX_IMAGE_BYTES, DecodedImage, image_of_pixels
from safesteer_edge.media.image_decoding import ImageFit, decode_image, letterbox_image
from safesteer_edge.media.media_file import read_media_file
from tests.media.png_bytes import GREY_ALPHA, RGB, png_bytes

WIDTH, HEIGHT = 40, 28


def scene(seed: int = 0) -> Image.Image:
    """A small RGB picture of soft colours, which every coder keeps more or less."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _transparent() -> Image.Image:
    image = scene().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _palette_transparent() -> Image.Image:
    image = scene().quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return image


def _sixteen_bits(channels: int) -> bytes:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 1 << 16, (HEIGHT, WIDTH * channels), dtype=np.uint16).astype(">u2")
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    color_type = RGB if channels == 3 else GREY_ALPHA
    return png_bytes(WIDTH, HEIGHT, bit_depth=16, color_type=color_type, pixels=pixels)


def _written(channels: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(_sixteen_bits(channels))

    return write


def _saved(
    image: Callable[[], Image.Image], format_name: str, **options: Any
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image().save(path, format_name, **options)

    return write


def _frames(format_name: str) -> Callable[[Path], None]:
    return _saved(scene, format_name, save_all=True, append_images=[scene(1), scene(2)])


def _grey_16() -> Image.Image:
    shades = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16)
    return Image.fromarray(shades.reshape(HEIGHT, WIDTH))


SAMPLES: dict[str, Callable[[Path], None]] = {
    "rgb.png": _saved(scene, "PNG"),
    "transparent.png": _saved(_transparent, "PNG"),
    "palette-transparent.png": _saved(_palette_transparent, "PNG"),
    "grey16.png": _saved(_grey_16, "PNG"),
    "rgb16.png": _written(3),
    "grey16-transparent.png": _written(2),
    "bilevel.png": _saved(lambda: scene().convert("1"), "PNG"),
    "animated.png": _frames("PNG"),
    "exif.png": _saved(scene, "PNG", exif=_exif()),
    "rgb.jpg": _saved(scene, "JPEG"),
    "grey.jpg": _saved(lambda: scene().convert("L"), "JPEG"),
    "progressive.jpg": _saved(scene, "JPEG", progressive=True, exif=_exif()),
    "cmyk.jpg": _saved(lambda: scene().convert("CMYK"), "JPEG"),
    "two-in-one.jpg": _frames("MPO"),
    "lossy.webp": _saved(scene, "WEBP", exif=_exif()),
    "transparent-lossless.webp": _saved(_transparent, "WEBP", lossless=True),
    "animated.webp": _frames("WEBP"),
    "palette.gif": _saved(lambda: scene().quantize(16), "GIF"),
    "animated.gif": _frames("GIF"),
    "rgb.bmp": _saved(scene, "BMP"),
    "palette.bmp": _saved(lambda: scene().quantize(16), "BMP"),
    "rgb.tif": _saved(scene, "TIFF", exif=_exif()),
    "lzw.tif": _saved(scene, "TIFF", compression="tiff_lzw"),
    "deflate-cmyk.tif": _saved(
        lambda: scene().convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"
    ),
    "jpeg.tif": _saved(scene, "TIFF", compression="jpeg"),
    "fax.tif": _saved(lambda: scene().convert("1"), "TIFF", compression="group4"),
    "grey16.tif": _saved(_grey_16, "TIFF"),
    "transparent.tif": _saved(_transparent, "TIFF", compression="zstd"),
    "pages.tif": _frames("TIFF"),
    "turned.avif": _saved(scene, "AVIF", exif=_exif().tobytes()),  # it would empty an Exif
    "transparent.avif": _saved(_transparent, "AVIF"),
    "turned.heic": _saved(scene, "HEIF", exif=_exif().tobytes()),
    "transparent.heic": _saved(_transparent, "HEIF"),
    "tiles.heic": _saved(lambda: scene().resize((640, 448)), "HEIF", tile_size=256),
}


def write_sample(folder: Path, name: str) -> Path:
    """Write one of SAMPLES and return its path."""
    path = folder / name
    pillow_heif.register_heif_opener()  # which saves them, too
    SAMPLES[name](path)
    return path


def letterbox(picture: NDArray[np.uint8] | Image.Image, side: int) -> NDArray[np.uint8]:
    """A picture on a white square, from and to pixels: uint8 (height, width, 3), RGB."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return np.asarray(letterbox_image(image.convert("RGB"), side), dtype=np.uint8)


def load_image(path: Path) -> DecodedImage:
    """A picture decoded in this process, where a test can look on."""
    data = read_media_file(path, "image", max_bytes=MAX_IMAGE_BYTES)
    picture = decode_image(data, name=repr(str(path)), fit=ImageFit())
    pixels = np.asarray(picture.image, dtype=np.uint8)
    return image_of_pixels(pixels, path.name, (picture.width, picture.height))
