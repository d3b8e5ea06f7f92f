"""Endless training examples: images with the classes of their cells and characters."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from backbone import N_PATCHES_SIDE
from fonts import find_fonts
from icons import picture
from image_code import IGNORED, character_grid, text_cells, thing_cells
from prompts import NAMING, READING, Frame, frame
from sentences import TextSource
from text_images import render
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from workspace import Work


@dataclass(frozen=True, slots=True)
class Mixture:
    """pictures: share of pictures of things. ease: see `text_images.render`; max_words: texts."""

    pictures: float
    ease: float
    max_words: int


@dataclass(frozen=True, slots=True)
class Example:
    """pixels: uint8 (224, 224, 3). cells: int64 (64,). characters: int64 (256, 2). text: shown."""

    pixels: np.ndarray
    cells: np.ndarray
    characters: np.ndarray
    text: str
    is_text: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """pixels: uint8 (n, 224, 224, 3). cells: int64 (n, 64). characters: int64 (n, 256, 2)."""

    pixels: Tensor
    cells: Tensor
    characters: Tensor
    frames: list[Frame]

    def on(self, device: torch.device) -> Batch:
        """The same batch there."""
        return Batch(
            self.pixels.to(device, non_blocking=True),
            self.cells.to(device, non_blocking=True),
            self.characters.to(device, non_blocking=True),
            self.frames,
        )


class Examples(IterableDataset):
    """Batches without end, from a seed."""

    def __init__(self, work: Work, mixture: Mixture, *, batch_size: int, seed: int) -> None:
        self._codec = work.codec
        self._tokens = work.tokens
        self._icons = [icon for icon in work.icons if icon.split == "train"]
        self._fonts: list[Path] = find_fonts("train")
        self._mixture = mixture
        self._batch_size = batch_size
        self._seed = seed
        self._texts = TextSource("train")

    def batches(self, n_processes: int) -> Iterator[Batch]:
        """Batches without end, drawn ahead by so many processes."""
        loader = DataLoader(self, batch_size=None, num_workers=n_processes, prefetch_factor=6)
        return iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self._seed * 1000 + (worker.id if worker else 0))
        while True:
            batch = [self.draw(rng) for _ in range(self._batch_size)]
            yield Batch(
                torch.from_numpy(np.stack([example.pixels for example in batch])),
                torch.from_numpy(np.stack([example.cells for example in batch])),
                torch.from_numpy(np.stack([example.characters for example in batch])),
                [self._frame(example, rng) for example in batch],
            )

    def _frame(self, example: Example, rng: random.Random) -> Frame:
        """A question about the image and its right answer."""
        if example.is_text:
            return frame(self._tokens, rng.choice(READING), " ".join(example.text.split()))
        article = "An" if example.text[0] in "aeiou" else "A"
        return frame(self._tokens, rng.choice(NAMING), f"{article} {example.text}.")

    def draw(self, rng: random.Random) -> Example:
        """One example."""
        if rng.random() < self._mixture.pictures:
            icon = rng.choice(self._icons)
            characters = np.full((N_PATCHES_SIDE**2, 2), IGNORED, np.int64)
            pixels = picture(icon, rng)
            cells = thing_cells(icon.name, self._codec)
            return Example(pixels, cells, characters, icon.name, False)
        while True:
            text = self._texts.draw(rng, max_words=self._mixture.max_words)
            try:
                image = render(text, rng.choice(self._fonts), rng, ease=self._mixture.ease)
            except ValueError:  # it fits at no size: another one
                continue
            cells = text_cells(image.lines, self._codec)
            return Example(image.pixels, cells, character_grid(image.lines), text, True)
