"""Putting checked files into the library's folder, and taking them out again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from safesteer_edge.formats.model_file import (
    ModelInfo,
    ProjectorInfo,
    check_language_model,
    check_projector_fits,
)
from safesteer_edge.library.index import Index, InstalledModel, library_folder
from safesteer_edge.library.stored_file import StoredFile

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def check_pair(model: Path, projector: Path | None) -> tuple[ModelInfo, ProjectorInfo | None]:
    """Check both files, and that they belong together. Raises ModelFileError."""
    info = check_language_model(model)
    if projector is None:
        return info, None
    return info, check_projector_fits(projector, info)


def modalities(projector: ProjectorInfo | None) -> tuple[str, ...]:
    """What a model with this projector takes beside text."""
    if projector is None:
        return ()
    pairs = (("images", projector.has_vision), ("sound", projector.has_audio))
    return tuple(name for name, is_there in pairs if is_there)


def place_for(name: str, checksum: str, file: str) -> Path:
    """Where a file of the library lies: its own folder per content, so that none is overwritten."""
    folder = library_folder() / (_UNSAFE.sub("--", name).strip(".-") or "model") / checksum[:12]
    base = _UNSAFE.sub("_", PurePosixPath(file).name).lstrip(".-") or "model.gguf"
    return folder / base


def move_in(source: Path, place: Path) -> None:
    """Give a finished download its name. Atomic. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    source.replace(place)


def link_in(source: Path, place: Path) -> bool:
    """Give a file of another program a second name here; False where the file system will not."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        os.link(source.resolve(), place)
    except OSError:
        return False
    return True


def delete_unused(files: Iterable[StoredFile], index: Index) -> list[Path]:
    """Delete the library's own files that no model uses any more. Returns those deleted."""
    used = {file.path for model in index.models for file in model.files}
    folder = library_folder().resolve()
    deleted: list[Path] = []
    for file in files:
        inside = file.path.resolve().is_relative_to(folder)
        if not file.is_owned or file.path in used or not inside:
            continue
        file.path.unlink(missing_ok=True)
        deleted.append(file.path)
        for parent in (file.path.parent, file.path.parent.parent):
            if parent.resolve() != folder and not any(parent.iterdir()):
                parent.rmdir()
    return deleted


def files_replaced(old: InstalledModel | None, new: InstalledModel) -> list[StoredFile]:
    """Files of the old record that the new one does not use."""
    kept = {file.path for file in new.files}
    return [file for file in (old.files if old else ()) if file.path not in kept]
