"""Images as a projector gets them: plain pixels, and what is told about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.media.image_decoding import ImageFit, decode_image
from safesteer_edge.media.media_file import read_media_file

MAX_FILE_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """pixels: uint8 (height, width, 3), RGB. sha256: of size and pixels, in hex.

    original_width, original_height: of the picture in the file, upright.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    name: str
    original_width: int
    original_height: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])


def load_image(path: Path, fit: ImageFit | None = None) -> DecodedImage:
    """Decode a picture in this process: for pictures of our own making.

    Files from elsewhere go through `decoder.MediaDecoder`, which can end what takes too long.
    Raises MediaError if it is missing, too large, too oblong, damaged or no picture.
    """
    data = read_media_file(path, "image", max_bytes=MAX_FILE_BYTES)
    picture = decode_image(data, name=repr(str(path)), fit=fit or ImageFit())
    pixels = np.asarray(picture.image, dtype=np.uint8)
    return image_of_pixels(pixels, path.name, (picture.width, picture.height))


def image_of_pixels(
    pixels: NDArray[np.uint8], name: str, original_size: tuple[int, int] | None = None
) -> DecodedImage:
    """The image of these pixels, uint8 (height, width, 3), RGB. original_size: width, height."""
    width, height = original_size or (int(pixels.shape[1]), int(pixels.shape[0]))
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return DecodedImage(pixels, digest.hexdigest(), name, width, height)
