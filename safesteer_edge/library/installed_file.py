"""What the file of an installed model says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.model_file import check_language_model


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """problem: why it cannot be used, in a line; the rest is None then."""

    quantization: str | None = None
    size_bytes: int | None = None
    problem: str | None = None


def read_installed_file(path: Path) -> InstalledFile:
    """Read the header. Takes 0.1 s."""
    try:
        info = check_language_model(path)
    except ModelFileError as error:
        return InstalledFile(problem=" ".join(str(error).split()))
    return InstalledFile(info.quantization, info.size_bytes)
