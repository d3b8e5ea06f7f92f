"""What the tests of sessions share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 56 × 56 pixels: 4 image tokens."""
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(3).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
