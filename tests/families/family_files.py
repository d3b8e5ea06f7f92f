"""One family's files on disk, and prompts for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.session.settings import SessionSettings
from tests.tiny_models.families.family import Family
from tests.tiny_models.families.projectors import write_projector
from tests.tiny_models.families.write import write_family

FIRST_TEXT_ID, TEXT_END_ID = 9, 318  # no family has a control token from the one, or ends before


@dataclass(frozen=True)
class FamilyFiles:
    """A family's tiny model, its projector, and two pictures, written when first asked for."""

    family: Family
    folder: Path

    @cached_property
    def model(self) -> Path:
        """The language model."""
        return write_family(self.folder / f"{self.family.name}.gguf", self.family)

    @cached_property
    def mmproj(self) -> Path | None:
        """The projector, None if the family sees nothing."""
        kind = self.family.projector
        if kind is None:
            return None
        n_deepstack = self.family.metadata.get("n_deepstack_layers", 0)
        assert isinstance(n_deepstack, int)
        path = self.folder / f"{self.family.name}-mmproj.gguf"
        return write_projector(path, kind, n_deepstack=n_deepstack)

    @cached_property
    def pictures(self) -> tuple[Path, Path]:
        """A square one, and one that is wider than high: other rows and columns under M-RoPE."""
        rng = np.random.default_rng(14)
        paths = (self.folder / "square.png", self.folder / "wide.png")
        for path, shape in zip(paths, ((56, 56, 3), (40, 72, 3)), strict=True):
            if not path.exists():
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return paths

    def settings(self, **changes: object) -> SessionSettings:
        """Settings of short greedy answers on one thread with the guard off."""
        values: dict[str, object] = {
            "model": str(self.model),
            "mmproj": self.mmproj,
            "guard": "off",
            "n_ctx": 1024,
            "n_threads": 1,
            "max_tokens": 8,
            "sampling": SamplingSettings(temperature=0, top_k=8),
        }
        return SessionSettings(**{**values, **changes})  # pyright: ignore[reportArgumentType]  # by name


def random_tokens(seed: int, n_tokens: int) -> list[int]:
    """Text tokens, no control token among them."""
    rng = np.random.default_rng(seed)
    return rng.integers(FIRST_TEXT_ID, TEXT_END_ID, n_tokens).tolist()
