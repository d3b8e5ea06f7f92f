"""Images as a projector gets them: plain pixels, and what is told about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def image_of_pixels(
    pixels: NDArray[np.uint8], name: str, original_size: tuple[int, int] | None = None
) -> DecodedImage:
    """The image of these pixels, uint8 (height, width, 3), RGB. original_size: width, height."""
    width, height = original_size or (int(pixels.shape[1]), int(pixels.shape[0]))
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return DecodedImage(pixels, digest.hexdigest(), name, width, height)
