"""Where files lie in the library, adding the user's own, removing and verifying what is there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safesteer_edge.errors import ModelFileError, SettingsError, os_errors_as
from safesteer_edge.formats.model_file import check_language_model, check_projector_fits
from safesteer_edge.library.catalogue import load_catalogue
from safesteer_edge.library.index import (
    Index,
    InstalledModel,
    Modality,
    StoredFile,
    change_index,
    library_folder,
    read_index,
    record_file,
    verified_again,
)

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def described(
    name: str, model: StoredFile, projector: StoredFile | None = None, *, title: str = ""
) -> InstalledModel:
    """The record of files, from their headers. title: '' is the file's own name of the model.

    Raises ModelFileError if they are not what they should be, or do not belong together.
    """
    info = check_language_model(model.path)
    takes: list[Modality] = []
    if projector is not None:
        found = check_projector_fits(projector.path, info)
        pairs: tuple[tuple[Modality, bool], ...] = (
            ("images", found.has_vision),
            ("sound", found.has_audio),
        )
        takes = [name for name, is_there in pairs if is_there]
    return InstalledModel(
        name=name,
        title=title or info.name,
        architecture=info.architecture,
        quantization=info.quantization,
        context=info.n_ctx_train,
        model=model,
        projector=projector,
        takes=tuple(takes),
        parts=tuple(StoredFile(path, 0, 0, "", is_owned=False) for path in info.parts),
        tensor_table_sha256=info.tensor_table_sha256,
    )


def place_for(name: str, checksum: str, file: str) -> Path:
    """Where a file of the library lies: its own folder per content, so that none is overwritten."""
    folder = library_folder() / (_UNSAFE.sub("--", name).strip(".-") or "model") / checksum[:12]
    base = _UNSAFE.sub("_", PurePosixPath(file).name).lstrip(".-") or "model.gguf"
    return folder / base


def delete_unused(files: Iterable[StoredFile], index: Index) -> None:
    """Delete the library's own files that no model uses any more."""
    used = {file.path for model in index.models for file in model.files}
    folder = library_folder().resolve()
    for file in files:
        inside = file.path.resolve().is_relative_to(folder)
        if not file.is_owned or file.path in used or not inside:
            continue
        file.path.unlink(missing_ok=True)
        for parent in (file.path.parent, file.path.parent.parent):
            if parent.resolve() != folder and not any(parent.iterdir()):
                parent.rmdir()


def add_model(name: str, model: Path, projector: Path | None) -> InstalledModel:
    """Record the user's files under a name: by reference, they stay where they are.

    Hashes all of them, about a second a gigabyte. Raises SettingsError, ModelFileError.
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
    files = [StoredFile(path, 0, 0, "", is_owned=False) for path in (model, projector) if path]
    record = described(name, *files)
    is_split = bool(record.parts)
    record = record.with_files(lambda file: _recorded(file.path, by_name=is_split))
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
            f"model {record.name!r} was removed from the list, but {str(error.filename)!r} cannot "
            f"be deleted: {error.strerror or error}; delete it yourself"
        ) from error
    return plan


def verify_model(record: InstalledModel) -> InstalledModel:
    """Hash every file of a model against its record. Raises ModelFileError if one has changed."""
    renewed = record.with_files(lambda file: verified_again(file, record.name))
    change_index(lambda index: index.with_model(renewed))
    return renewed


def _recorded(path: Path, *, by_name: bool) -> StoredFile:
    """by_name: the file must keep its name, be it a link's: llama.cpp finds the parts by it."""
    with os_errors_as(ModelFileError, f"cannot read {str(path)!r}", "check the path"):
        place = path.expanduser()
        resolved = place.parent.resolve() / place.name if by_name else place.resolve()
        return record_file(resolved, is_owned=False)
