"""Images: decoded by Pillow under limits; the projector gets pixels, never a file.

Pillow is imported in this folder alone.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import check_media_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_FILE_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 20.0
MIN_SIDE = 2


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """pixels: uint8 (height, width, 3), RGB. sha256: of size and pixels, in hex."""

    pixels: NDArray[np.uint8]
    sha256: str
    name: str

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])


def load_image(path: Path) -> DecodedImage:
    """Decode a picture: first frame, turned upright, transparency on white, metadata dropped.

    Raises MediaError if it is missing, too large, too oblong, damaged or no picture.
    """
    name = repr(str(path))
    check_media_file(path, "image", max_bytes=MAX_FILE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is dropped, not talked about
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image.width, image.height, name)
                upright = ImageOps.exif_transpose(image)
                rgb = _on_white(upright)
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(
            f"cannot use {name} as an image: it is none of {', '.join(FORMATS)}; convert it"
        ) from error
    except Exception as error:  # damaged files end in struct.error, KeyError, … inside Pillow
        raise MediaError(f"cannot decode image {name}: {error}; it may be damaged") from error
    return image_of_pixels(np.asarray(rgb, dtype=np.uint8), path.name)


def image_of_pixels(pixels: NDArray[np.uint8], name: str) -> DecodedImage:
    """The image of these pixels, uint8 (height, width, 3), RGB."""
    return DecodedImage(pixels, _pixel_sha256(pixels), name)


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"image {name} is {width}×{height}; each side needs {MIN_SIDE} pixels")
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"image {name} is {width}×{height}; the limit is {MAX_PIXELS} pixels; shrink it first"
        )
    if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        raise MediaError(
            f"image {name} is {width}×{height}; one side may be at most "
            f"{MAX_ASPECT_RATIO:g} times the other; crop it first"
        )


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255: all white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
