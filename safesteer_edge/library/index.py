"""The index of installed models: one JSON file, replaced whole, changed under a lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safesteer_edge.errors import ModelFileError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.user_folders import user_data_folder
from safesteer_edge.library.stored_file import (
    StoredFile,
    gone_error,
    looks_unchanged,
    verified_again,
)

_SCHEMA_VERSION = 1
_FILE = "index.json"
_LOCK_TIMEOUT_S = 60
_TEXTS = ("path", "sha256", "repository", "revision", "repository_file")


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that was pulled or added. context: tokens, from the file. takes: of its projector."""

    name: str
    title: str
    architecture: str
    quantization: str
    context: int
    model: StoredFile
    projector: StoredFile | None = None
    takes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The model's file, and the projector's if there is one."""
        return (self.model,) if self.projector is None else (self.model, self.projector)


@dataclass(frozen=True, slots=True)
class Index:
    """All installed models, in the order in which they came."""

    models: tuple[InstalledModel, ...] = ()

    def find(self, name: str) -> InstalledModel | None:
        """The model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def with_model(self, model: InstalledModel) -> Index:
        """This model added, or in the place of the one of that name."""
        if self.find(model.name) is None:
            return Index((*self.models, model))
        return Index(tuple(model if each.name == model.name else each for each in self.models))

    def without(self, name: str) -> Index:
        """The model of that name taken out."""
        return Index(tuple(each for each in self.models if each.name != name))


def library_folder(*, create: bool = False) -> Path:
    """Where pulled models and the index lie. Raises SettingsError if it cannot be made."""
    folder = user_data_folder(create=create) / "models"
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"cannot make the folder {str(folder)!r}: {error.strerror or error}; "
                "make its parent writable"
            ) from error
    return folder


def read_index() -> Index:
    """The index as it is on the disk; empty if there is none. Raises SettingsError if damaged."""
    path = library_folder() / _FILE
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Index()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        value = json.loads(text)
        if value["schema_version"] != _SCHEMA_VERSION:
            raise _damaged(path, f"schema version {value['schema_version']!r}")
        return Index(tuple(_to_model(row, path.parent) for row in value["models"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def change_index(change: Callable[[Index], Index]) -> Index:
    """Read, change and write the index while nobody else does. Returns what it has become."""
    folder = library_folder(create=True)
    with _locked(folder):
        index = change(read_index())
        rows = [_to_row(model, folder) for model in index.models]
        value = {"schema_version": _SCHEMA_VERSION, "models": rows}
        try:
            with atomic_write(folder / _FILE, "w") as stream:
                json.dump(value, stream, indent=1, ensure_ascii=False)
        except OSError as error:
            raise SettingsError(
                f"cannot write {str(folder / _FILE)!r}: {error.strerror or error}; "
                "make room, or make it writable"
            ) from error
    return index


def checked_path(record: InstalledModel, file: StoredFile) -> Path:
    """The path of a model's file, if it is still the one that was recorded.

    Compares size and modification time; where only the time differs it hashes the whole file
    (about a second a gigabyte) and, if that agrees, records the new time.
    Raises ModelFileError if the file is gone or has changed.
    """
    try:
        if looks_unchanged(file):
            return file.path
    except OSError as error:
        raise gone_error(file, record.name, error) from error
    renewed = verified_again(file, record.name)
    change_index(lambda index: _with_file(index, record.name, file, renewed))
    return file.path


def _with_file(index: Index, name: str, old: StoredFile, new: StoredFile) -> Index:
    record = index.find(name)
    if record is None:
        return index
    if record.model == old:
        record = replace(record, model=new)
    if record.projector == old:
        record = replace(record, projector=new)
    return index.with_model(record)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import filelock

    try:
        with filelock.FileLock(folder / "index.lock", timeout=_LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as error:
        raise SettingsError(
            f"another program has held {str(folder / 'index.lock')!r} for {_LOCK_TIMEOUT_S} s; "
            "let it finish, or end it"
        ) from error


def _damaged(path: Path, reason: str) -> SettingsError:
    return SettingsError(
        f"the index of models {str(path)!r} is damaged ({reason}); move it away, then pull or add "
        "the models again: files that are still there are not downloaded twice"
    )


def _to_row(model: InstalledModel, folder: Path) -> dict[str, Any]:
    row = asdict(model)
    for key in ("model", "projector"):
        if row[key] is not None:
            path: Path = row[key]["path"]
            # Relative inside the folder, so that it can be moved with what is in it.
            inside = path.is_relative_to(folder)
            row[key]["path"] = path.relative_to(folder).as_posix() if inside else str(path)
    return row


def _to_model(row: dict[str, Any], folder: Path) -> InstalledModel:
    texts = ("name", "title", "architecture", "quantization")
    if not all(isinstance(row[key], str) for key in texts):
        raise TypeError("a name is not a text")
    return InstalledModel(
        **{key: row[key] for key in texts},
        context=int(row["context"]),
        model=_to_file(row["model"], folder),
        projector=_to_file(row["projector"], folder) if row["projector"] else None,
        takes=tuple(str(each) for each in row["takes"]),
    )


def _to_file(row: dict[str, Any], folder: Path) -> StoredFile:
    if not all(isinstance(row[key], str) for key in _TEXTS) or not row["path"]:
        raise TypeError("a file's path or hash is not a text")
    return StoredFile(
        path=folder / row["path"],  # an absolute path replaces the folder
        size_bytes=int(row["size_bytes"]),
        mtime_ns=int(row["mtime_ns"]),
        sha256=row["sha256"],
        is_owned=row["is_owned"] is True,
        repository=row["repository"],
        revision=row["revision"],
        repository_file=row["repository_file"],
    )


# -- what the file of an installed model says of itself --------------------------------------------


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
