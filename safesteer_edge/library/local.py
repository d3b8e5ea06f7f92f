"""Models from the user's own files, and what can be done with what is installed."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from safesteer_edge.catalogue import load_catalogue
from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.library.index import InstalledModel, change_index, read_index
from safesteer_edge.library.install import check_pair, delete_unused, modalities
from safesteer_edge.library.stored_file import StoredFile, record_file, verified_again

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
