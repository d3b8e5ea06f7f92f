"""Images of short texts, with the place of every character: what reading is learned from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from backbone import IMAGE_SIDE
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MIN_LINE_PITCH = 22.0
"""Pixels from line to line at least: closer ones share rows of image tokens too often."""
MAX_LINES = 9
SMALLEST_SIZE, LARGEST_SIZE = 12, 34


@dataclass(frozen=True, slots=True)
class Line:
    """One line. starts: x of each character and of the line's end. top, bottom: of its letters."""

    text: str
    starts: tuple[float, ...]
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class TextImage:
    """pixels: uint8 (224, 224, 3). lines: top to bottom."""

    pixels: NDArray[np.uint8]
    lines: tuple[Line, ...]


@lru_cache(maxsize=2048)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def render(text: str, font_path: Path, rng: random.Random, *, ease: float = 0.0) -> TextImage:
    """Draw a text at a random size, place and colour, wrapped into the image.

    ease: 0 = the full range of sizes, colours and backgrounds; 1 = large, dark on light, plain.
    Newlines in `text` are kept. Raises ValueError if it fits at no size.
    """
    spacing, margin = rng.uniform(1.0, 1.4), (rng.uniform(3, 14), rng.uniform(2, 12))
    # Halving the interval finds nearly the largest size that fits; wrapping makes it no exact law.
    low, high = SMALLEST_SIZE, LARGEST_SIZE + 1
    if _layout(text, font_path, low, spacing, margin) is None:
        raise ValueError(f"{text!r} fits into no image")
    while high - low > 1:
        middle = (low + high) // 2
        fits = _layout(text, font_path, middle, spacing, margin) is not None
        low, high = (middle, high) if fits else (low, middle)
    # Short texts fill their image, as people and attackers set them; sometimes they do not.
    size = rng.randint(max(SMALLEST_SIZE, round(low * (0.85 if ease else 0.55))), low)
    layout = None
    while layout is None:
        layout = _layout(text, font_path, size, spacing, margin)
        size -= 1
    lines, pitch, height = layout
    spare = IMAGE_SIDE - 2 * margin[1] - height
    top = margin[1] + spare * rng.choice((0.0, 0.0, 0.5, rng.random()))
    return _draw(lines, _font(font_path, size + 1), (margin[0], top, pitch), rng, ease)


def _layout(
    text: str, font_path: Path, size: int, spacing: float, margin: tuple[float, float]
) -> tuple[list[str], float, float] | None:
    """Lines, pitch and height of a text at a size; None if it does not fit."""
    font = _font(font_path, size)
    pitch = max(MIN_LINE_PITCH, size * spacing)
    lines = _wrap(text, font, IMAGE_SIDE - 2 * margin[0])
    height = pitch * (len(lines) - 1) + size * 1.25
    if not lines or len(lines) > MAX_LINES or height > IMAGE_SIDE - 2 * margin[1]:
        return None
    return lines, pitch, height


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if not line or font.getlength(word) > width:
                return []
            lines.append(line)
            line = word
        lines.append(line)
    return lines


def _draw(
    lines: list[str],
    font: ImageFont.FreeTypeFont,
    place: tuple[float, float, float],
    rng: random.Random,
    ease: float,
) -> TextImage:
    left, top, pitch = place
    background, colour = _paper(rng, ease)
    image = Image.fromarray(background)
    draw = ImageDraw.Draw(image)
    align = rng.choice((0.0, 0.0, 0.0, 0.5))
    drawn: list[Line] = []
    for index, line in enumerate(lines):
        spare = IMAGE_SIDE - 2 * left - font.getlength(line)
        x, y = left + max(0.0, spare) * align, top + index * pitch
        draw.text((x, y), line, font=font, fill=colour)
        # The top and bottom of its small letters: what a reader's eye rests on.
        _, upper, _, lower = font.getbbox("x")
        starts = tuple(x + font.getlength(line[:k]) for k in range(len(line) + 1))
        drawn.append(Line(line, starts, y + upper, y + lower))
    pixels = np.asarray(image)
    if rng.random() < 0.3 * (1 - ease):
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 14), pixels.shape
        )
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return TextImage(pixels, tuple(drawn))


def _paper(rng: random.Random, ease: float) -> tuple[NDArray[np.uint8], tuple[int, int, int]]:
    """A background and a colour that stands out from it."""
    side = IMAGE_SIDE
    if rng.random() < max(0.4, ease):
        paper = np.full((side, side, 3), 255, np.uint8)
        return paper, (0, 0, 0)
    while True:
        first, second = (np.array([rng.randint(0, 255) for _ in range(3)]) for _ in range(2))
        ink = np.array([rng.randint(0, 255) for _ in range(3)])
        if rng.random() < 0.6:
            second = first
        contrast = min(abs(_luminance(ink) - _luminance(paper)) for paper in (first, second))
        if contrast > 90:
            break
    ramp = np.linspace(0, 1, side)[:, None, None]
    paper = np.broadcast_to(first + (second - first) * ramp, (side, side, 3))
    if rng.random() < 0.5:
        paper = paper.transpose(1, 0, 2)
    red, green, blue = (int(value) for value in ink)
    return np.ascontiguousarray(paper).astype(np.uint8), (red, green, blue)


def _luminance(colour: NDArray[np.int64]) -> float:
    return float(colour @ np.array([0.299, 0.587, 0.114]))
