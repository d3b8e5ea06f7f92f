"""The vision recipe's files: llama.cpp computes what the recipe's PyTorch model does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import MediaRun, TokenRun
from safesteer_edge.library.catalogue import default_model, installed_path, models_folder
from tests.media.sample_pictures import letterbox, load_image

pytestmark = pytest.mark.default_model

VISION = models_folder() / "smollm2-135m-instruct" / "vision"
N_IMAGES = 10
IMAGE_SIDE = 224


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe's modules, which stand in a folder that is no package."""

    backbone: Any
    export_gguf: Any


@pytest.fixture(scope="module")
def recipe() -> Iterator[Recipe]:
    sys.path.insert(0, str(VISION))
    try:
        yield Recipe(importlib.import_module("backbone"), importlib.import_module("export_gguf"))
    finally:
        sys.path.remove(str(VISION))


SHIPPED = VISION / "mmproj-smollm2-135m-instruct.gguf"


@pytest.fixture(scope="module", params=("shipped", "random"))
def projector_path(
    request: pytest.FixtureRequest, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The shipped file, and one that the recipe wrote: random weights, the default's width."""
    if request.param == "shipped":
        return SHIPPED
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vision") / "mmproj.gguf"
    recipe.export_gguf.write_projector(path, recipe.backbone.VisionModel(4, 576), n_images=0)
    return path


def held_out_pixels() -> list[NDArray[np.uint8]]:
    """Ten held-out images, texts and pictures, at the size that the model sees."""
    paths = sorted((VISION / "heldout").glob("*.jpg"))
    chosen = paths[:: len(paths) // N_IMAGES][:N_IMAGES]
    return [letterbox(load_image(path).pixels, IMAGE_SIDE) for path in chosen]


def test_mtmd_embeds_images_as_the_recipe_s_model_does(
    recipe: Recipe, projector_path: Path
) -> None:
    model = recipe.export_gguf.read_projector(projector_path)
    images = held_out_pixels()
    with torch.no_grad():
        expected = model(torch.from_numpy(np.stack(images))).numpy()
    language_model = NativeModel(installed_path(default_model()), n_gpu_layers=0)
    with language_model:
        projector = Projector(projector_path, language_model, n_threads=1)
        try:
            for index, pixels in enumerate(images):
                encoded = projector.encode_image(pixels, sha256=f"image {index}")
                media = [item for item in encoded.items if isinstance(item, MediaRun)]
                assert len(media) == 1
                assert media[0].embeddings.shape == (64, 576)
                correlation = np.corrcoef(media[0].embeddings.ravel(), expected[index].ravel())[
                    0, 1
                ]
                assert correlation >= 0.999
        finally:
            projector.close()


def test_an_image_s_tokens_stand_between_its_two_marks(projector_path: Path) -> None:
    with NativeModel(installed_path(default_model()), n_gpu_layers=0) as language_model:
        projector = Projector(projector_path, language_model, n_threads=1)
        try:
            items = projector.encode_image(held_out_pixels()[0], sha256="an image").items
        finally:
            projector.close()
        before, image, after = items
        assert isinstance(before, TokenRun)
        assert isinstance(after, TokenRun)
        assert isinstance(image, MediaRun)
        assert b"".join(map(language_model.piece, before.token_ids)) == b"<img>"
        assert b"".join(map(language_model.piece, after.token_ids)) == b"</img>"


def test_the_shipped_file_is_small_and_the_default_s() -> None:
    assert default_model().mmproj == SHIPPED
    assert SHIPPED.stat().st_size <= 50 * 1000 * 1000


def test_a_projector_file_is_read_back_as_it_was_written(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    written = recipe.backbone.VisionModel(2, 64)
    recipe.export_gguf.write_projector(tmp_path / "mmproj.gguf", written, n_images=7)
    read = recipe.backbone.VisionModel(2, 64)
    assert recipe.export_gguf.load_projector_inplace(read, tmp_path / "mmproj.gguf") == 7
    for name, tensor in written.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor, atol=2e-3, rtol=2e-3)
