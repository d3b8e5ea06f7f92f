"""How large a picture is handed to a projector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# -- A picture on a white square: the geometry of projectors that take one square of fixed size ----
# The one place for it: the runtime prepares pictures with it, and the recipe of the default
# projector trains on pictures that went through it. Change nothing here without training again.

_WHITE = (255, 255, 255)
# Large pictures are first shrunk by whole factors (boxes), to no less than this times the target:
# 94 ms instead of 165 at 12 megapixels (measured), and less than one grey level of difference.
_REDUCING_GAP = 3.0


def letterboxed_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of the picture inside the square: one is `side`, neither is below 1."""
    longest = max(width, height)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def letterbox_image(image: Image.Image, side: int) -> Image.Image:
    """Scale an RGB picture up or down to fit, its aspect kept, and centre it on a white square."""
    size = letterboxed_size(image.width, image.height, side)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    if size == (side, side):
        return image
    square = Image.new("RGB", (side, side), _WHITE)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def letterbox(picture: NDArray[np.uint8] | Image.Image, side: int) -> NDArray[np.uint8]:
    """The same from and to pixels: uint8 (height, width, 3), RGB, to uint8 (side, side, 3)."""
    import numpy as np  # deferred: the process that decodes pictures starts without it

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return np.asarray(letterbox_image(image.convert("RGB"), side), dtype=np.uint8)


# More than any projector of this llama.cpp makes use of but one (its default limits are 4,096 and
# 16,384 tokens of 28 × 28 pixels); a picture of it takes 38 MB.
MAX_SEEN_PIXELS = 12_845_056
MAX_ASPECT_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class ImageFit:
    """square_side: each picture is letterboxed to this side; None: pictures keep their shape.

    max_pixels: of pictures that keep their shape; larger ones are scaled down, none is scaled up.
    """

    square_side: int | None = None
    max_pixels: int = MAX_SEEN_PIXELS

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size that a picture itself is scaled to, without the white around it."""
        if self.square_side is not None:
            return letterboxed_size(width, height, self.square_side)
        scale = math.sqrt(self.max_pixels / (width * height))
        if scale >= 1:
            return width, height
        return max(1, math.floor(width * scale)), max(1, math.floor(height * scale))

    def extreme_sizes(self) -> list[tuple[int, int]]:
        """The largest pictures that a projector is handed, of several shapes."""
        if self.square_side is not None:
            return [(self.square_side, self.square_side)]
        sizes: list[tuple[int, int]] = []
        for aspect_ratio in (1, 1.5, 2, 4, 10, MAX_ASPECT_RATIO):
            width = math.floor(math.sqrt(self.max_pixels * aspect_ratio))
            height = math.floor(self.max_pixels / width)
            sizes += [(width, height), (height, width)]
        return sizes
