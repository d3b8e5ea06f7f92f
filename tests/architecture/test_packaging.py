"""A wheel holds every package and every file that they read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.architecture.source_imports import REPOSITORY, SOURCE_FOLDERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # Python 3.10 alone

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]
CODE = {".py", ".pyc", ".c", ".so", ".pyd"}


def packages() -> dict[str, Path]:
    """Every package's folder, read from the sources."""
    return {
        ".".join([top, *path.parent.relative_to(folder).parts]): path.parent
        for top, folder in SOURCE_FOLDERS.items()
        for path in folder.rglob("__init__.py")
    }


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in SOURCE_FOLDERS["safesteer_edge"].rglob("*.py")}
    assert folders <= set(packages().values())


def test_every_file_that_the_program_reads_is_shipped():
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in packages()[package].glob(pattern)
    }
    models = SOURCE_FOLDERS["safesteer_edge.models"]
    needed = {models / "catalogue.toml", *models.glob("*/guard/*")}
    for top in ("safesteer_edge", "safesteer_edge.converters"):
        needed |= {path for path in SOURCE_FOLDERS[top].rglob("*") if path.is_file()}
    assert {path for path in needed - shipped if path.suffix not in CODE} == set()
