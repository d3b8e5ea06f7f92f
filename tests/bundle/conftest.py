"""A guard bundle for a tiny model, made with the real writer, and the means to spoil it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safesteer_edge.bundle.writer import BundleParts, write_bundle
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from tests.bundle.sample_parts import sample_parts
from tests.tiny_models import write_tiny_llama

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """The tiny model that the sample bundle is made for."""
    folder = tmp_path_factory.mktemp("model")
    return check_language_model(write_tiny_llama(folder / "tiny.gguf"))


@pytest.fixture(scope="session")
def parts(model: ModelInfo) -> BundleParts:
    """The parts of a good bundle with a probe on two layers and a vector."""
    return sample_parts(model)


@pytest.fixture
def folder(tmp_path: Path, parts: BundleParts) -> Path:
    """A good bundle on disk."""
    return write_bundle(tmp_path / "bundle", parts)


@pytest.fixture
def edit_config(folder: Path) -> Callable[[Edit], None]:
    """Change the good bundle's guard.json in place."""

    def edit(change: Edit) -> None:
        path = folder / "guard.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit
