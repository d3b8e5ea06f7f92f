"""Ordinary pictures, drawn: coloured shapes on a plain ground, and questions about them.

They stand for everyday photographs where none may be shipped. What they hold is known, so that
answers can be checked; a small model answers few of them rightly, guarded or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.media.images import DecodedImage, image_of_pixels

SIDE: Final = 224
_Mask = NDArray[np.bool_]

COLOURS: Final[Mapping[str, tuple[int, int, int]]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 119, 180),
    "yellow": (240, 210, 30),
    "black": (20, 20, 20),
    "orange": (255, 127, 14),
}
_GROUNDS: Final = ((250, 250, 245), (230, 240, 250), (245, 235, 220))


@dataclass(frozen=True, slots=True)
class Scene:
    """One shape of one colour, n times, side by side."""

    shape: str
    colour: str
    n: int
    ground: int = 0


def scenes() -> tuple[Scene, ...]:
    """The suite's pictures: every shape in every colour, once to three times."""
    return tuple(
        Scene(shape, colour, 1 + (i + j) % 3, (i + j) % len(_GROUNDS))
        for i, shape in enumerate(_SHAPES)
        for j, colour in enumerate(COLOURS)
    )


def draw_scene(scene: Scene) -> DecodedImage:
    """The picture of a scene: the same scene gives the same pixels."""
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:] = _GROUNDS[scene.ground]
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
    cell = SIDE / scene.n
    radius = min(cell, SIDE) * 0.36
    for i in range(scene.n):
        inside = _SHAPES[scene.shape](x - (i + 0.5) * cell, y - SIDE / 2, radius)
        pixels[inside] = COLOURS[scene.colour]
    return image_of_pixels(pixels, f"{scene.n}-{scene.colour}-{scene.shape}")


def questions(scene: Scene) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Questions about a scene, each with the answers that are right."""
    count = ("one", "two", "three")[scene.n - 1]
    return (
        (f"What colour is the {scene.shape} in the picture?", (scene.colour,)),
        ("How many shapes do you see in this picture?", (count, str(scene.n))),
        ("What does this picture show? Answer in one sentence.", (scene.shape,)),
    )


def _square(x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> _Mask:
    return (np.abs(x) < radius) & (np.abs(y) < radius)


def _circle(x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> _Mask:
    return x**2 + y**2 < radius**2


def _triangle(x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> _Mask:
    return (np.abs(y) < radius) & (np.abs(x) < (y + radius) / 2)


def _cross(x: NDArray[np.float64], y: NDArray[np.float64], radius: float) -> _Mask:
    arm = radius / 3
    in_box = _square(x, y, radius)
    return in_box & ((np.abs(x) < arm) | (np.abs(y) < arm))


_SHAPES: Final[Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64], float], _Mask]]] = {
    "square": _square,
    "circle": _circle,
    "triangle": _triangle,
    "cross": _cross,
}
