"""Putting checked files into the library's folder, and taking them out again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.formats.projector_file import ProjectorInfo
from safesteer_edge.library.catalogue import load_catalogue
from safesteer_edge.library.index import (
    Index,
    InstalledModel,
    change_index,
    library_folder,
    read_index,
)
from safesteer_edge.library.stored_file import StoredFile, record_file, verified_again

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


# -- models from the user's own files, and what can be done with what is installed -----------------

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def add_model(name: str, model: Path, projector: Path | None) -> InstalledModel:
    """Record the user's files under a name: by reference, they stay where they are.

    Hashes both, about a second a gigabyte. Raises SettingsError, ModelFileError.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"model name {name!r}; expected lower-case letters, digits, '.', '_' and '-'"
        )
    if any(name == known.name for known in load_catalogue()):
        raise SettingsError(
            f"there is a model {name!r} already; choose another name, or remove it first: "
            f"safesteer-edge models remove {name}"
        )
    info, projector_info = check_pair(model, projector)
    record = InstalledModel(
        name=name,
        title=info.name,
        architecture=info.architecture,
        quantization=info.quantization,
        context=info.n_ctx_train,
        model=_recorded(model),
        projector=_recorded(projector) if projector else None,
        takes=modalities(projector_info),
    )
    change_index(lambda index: index.with_model(record))
    return record


def installed_record(name: str) -> InstalledModel:
    """The record of an installed model. Raises SettingsError naming what to do."""
    record = read_index().find(name)
    if record is None:
        for model in load_catalogue():
            if model.name == name and model.package:
                raise SettingsError(
                    f"the package {model.install!r} carries model {name!r}; manage it with pip"
                )
        raise SettingsError(f"model {name!r} is not installed; see 'safesteer-edge models list'")
    return record


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a model deletes, and what it leaves."""

    deleted: tuple[Path, ...]
    kept: tuple[Path, ...]


def planned_removal(record: InstalledModel, *, with_own_files: bool) -> Removal:
    """What `remove_model` would do. with_own_files: delete the user's own files as well."""
    others = {
        file.path for each in read_index().models if each.name != record.name for file in each.files
    }
    deleted = tuple(
        file.path
        for file in record.files
        if file.path not in others and (file.is_owned or with_own_files)
    )
    return Removal(deleted, tuple(f.path for f in record.files if f.path not in deleted))


def remove_model(record: InstalledModel, *, with_own_files: bool) -> Removal:
    """Take a model out of the index, and delete its files as planned. Raises ModelFileError."""
    plan = planned_removal(record, with_own_files=with_own_files)
    index = change_index(lambda index: index.without(record.name))
    try:
        delete_unused(record.files, index)
        for path in plan.deleted:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"model {record.name!r} is out of the list, but {str(error.filename)!r} cannot be "
            f"deleted: {error.strerror or error}; delete it yourself"
        ) from error
    return plan


def verify_model(record: InstalledModel) -> InstalledModel:
    """Hash every file of a model against its record. Raises ModelFileError if one has changed."""
    renewed = replace(
        record,
        model=verified_again(record.model, record.name),
        projector=verified_again(record.projector, record.name) if record.projector else None,
    )
    change_index(lambda index: index.with_model(renewed))
    return renewed


def _recorded(path: Path) -> StoredFile:
    try:
        return record_file(path.expanduser().resolve(), is_owned=False)
    except OSError as error:
        raise ModelFileError(
            f"cannot read {str(path)!r}: {error.strerror or error}; check the path"
        ) from error
