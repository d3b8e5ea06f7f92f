"""A picture on a white square: its aspect kept, centred, and nothing of it lost."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.media.image_decoding import letterboxed_size
from tests.media.sample_pictures import letterbox


def black(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((760, 760), (224, 224)),
        ((4032, 3024), (224, 168)),
        ((3024, 4032), (168, 224)),
        ((10, 5), (224, 112)),
        ((224, 1), (224, 1)),
        ((10_000, 3), (224, 1)),
    ],
)
def test_the_longer_side_fills_the_square(size: tuple[int, int], inside: tuple[int, int]):
    assert letterboxed_size(*size, 224) == inside


@pytest.mark.parametrize(("width", "height"), [(448, 224), (100, 50), (4032, 2016)])
def test_a_wide_picture_has_white_above_and_below(width: int, height: int):
    square = letterbox(black(width, height), 224)
    assert (square.shape, square.dtype) == ((224, 224, 3), np.uint8)
    assert (square[:56] == 255).all()
    assert (square[56:168] == 0).all()
    assert (square[168:] == 255).all()


def test_a_tall_picture_has_white_on_both_sides():
    square = letterbox(black(75, 224), 224)
    columns = np.flatnonzero((square == 0).all(axis=(0, 2)))
    assert (columns[0], columns[-1]) == (74, 148)  # the odd column goes to the right


def test_a_picture_of_the_squares_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    np.testing.assert_array_equal(letterbox(pixels, 224), pixels)


def test_pixels_and_pillows_image_of_any_mode_give_the_same():
    pixels = np.random.default_rng(1).integers(0, 256, (90, 300, 3), dtype=np.uint8)
    grey = Image.fromarray(pixels).convert("L")
    np.testing.assert_array_equal(letterbox(pixels, 224), letterbox(Image.fromarray(pixels), 224))
    np.testing.assert_array_equal(letterbox(grey, 224), letterbox(grey.convert("RGB"), 224))


def test_shrinking_in_two_steps_is_shrinking_in_one():
    """Boxes first and Lanczos then, against Lanczos alone, on a smooth picture."""
    small = np.random.default_rng(2).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((2000, 2000), Image.Resampling.BICUBIC)
    direct = np.asarray(large.resize((224, 224), Image.Resampling.LANCZOS), dtype=int)
    assert np.abs(letterbox(large, 224).astype(int) - direct).mean() < 1
