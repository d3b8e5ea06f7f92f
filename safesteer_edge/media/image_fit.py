"""How large a picture is handed to a projector."""

from __future__ import annotations

import math
from dataclasses import dataclass

from safesteer_edge.media.letterbox import letterboxed_size

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
