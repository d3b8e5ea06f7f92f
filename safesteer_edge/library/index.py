"""The index of installed models: which files they have, and whether these are still the same.

One JSON file, replaced whole, changed under a lock. A file is recorded with its hash; from then on
its size and modification time stand in for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safesteer_edge.errors import ModelFileError, SettingsError, os_errors_as
from safesteer_edge.formats.atomic_write import hash_file, write_whole
from safesteer_edge.formats.json_values import BadValueError, format_json, from_json, load_json
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.formats.user_folders import user_data_folder

Modality = Literal["images", "sound"]

_FILE = "index.json"
_LOCK_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was recorded about a file when its hash was taken.

    mtime_ns: its modification time then.
    is_owned: it lies in the library's folder (perhaps as a hard link), so `models remove` deletes
    it; else it is the user's own file or another program's, and is left alone.
    repository, revision, repository_file: where it was pulled from, '' for an added file.
    """

    path: Path
    size_bytes: int
    mtime_ns: int
    sha256: str
    is_owned: bool
    repository: str = ""
    revision: str = ""
    repository_file: str = ""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that was pulled or added. context: tokens, from the file. takes: of its projector.

    parts: the files behind the first of a split model.
    tensor_table_sha256: what its guard bundle is found by; '' in records of older versions.
    """

    name: str
    title: str
    architecture: str
    quantization: str
    context: int
    model: StoredFile
    projector: StoredFile | None = None
    takes: tuple[Modality, ...] = ()
    parts: tuple[StoredFile, ...] = ()
    tensor_table_sha256: str = ""

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """The model's files, and the projector's if there is one."""
        return (self.model, *self.parts, *((self.projector,) if self.projector else ()))

    def with_files(self, change: Callable[[StoredFile], StoredFile]) -> InstalledModel:
        """The same model with each of its files changed."""
        projector = None if self.projector is None else change(self.projector)
        parts = tuple(change(part) for part in self.parts)
        return replace(self, model=change(self.model), projector=projector, parts=parts)


@dataclass(frozen=True, slots=True)
class Index:
    """All installed models, in the order in which they came."""

    models: tuple[InstalledModel, ...]
    schema_version: Literal[1] = 1

    def find(self, name: str) -> InstalledModel | None:
        """The model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def with_model(self, model: InstalledModel) -> Index:
        """This model added, or in the place of the one of that name."""
        return Index(
            tuple({**{each.name: each for each in self.models}, model.name: model}.values())
        )

    def without(self, name: str) -> Index:
        """The model of that name taken out."""
        return Index(tuple(each for each in self.models if each.name != name))

    def with_files(self, change: Callable[[StoredFile], StoredFile]) -> Index:
        """The same models with each of their files changed."""
        return Index(tuple(model.with_files(change) for model in self.models))


def library_folder(*, create: bool = False) -> Path:
    """Where pulled models and the index lie. Raises SettingsError if it cannot be made."""
    return user_data_folder("models", create=create)


def bundles_folder(*, create: bool = False) -> Path:
    """Where guard bundles are installed, by the model file that each is for."""
    return user_data_folder("bundles", create=create)


def bundle_place(tensor_table_sha256: str) -> Path:
    """The folder of the bundles that are for the model file with these tensors."""
    return bundles_folder() / tensor_table_sha256[:16]


def installed_bundle(tensor_table_sha256: str) -> Path | None:
    """The bundle that was installed last for this model file; None: there is none."""
    place = bundle_place(tensor_table_sha256)
    if not tensor_table_sha256 or not place.is_dir():
        return None
    found = [path for path in place.iterdir() if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def read_index() -> Index:
    """The index as it is on the disk; empty if there is none. Raises SettingsError if damaged."""
    path = library_folder() / _FILE
    try:
        index = from_json(Index, load_json(path.read_bytes()))
    except FileNotFoundError:
        return Index(())
    except (OSError, BadValueError) as error:
        raise SettingsError(
            f"the index of models {str(path)!r} is damaged ({error}); move it away, then pull or "
            "add the models again: files that are still there are not downloaded twice"
        ) from error
    # An absolute path replaces the folder.
    return index.with_files(lambda file: replace(file, path=path.parent / file.path))


def change_index(change: Callable[[Index], Index]) -> Index:
    """Read, change and write the index while nobody else does. Returns what it has become."""
    folder = library_folder(create=True)
    with locked(folder):
        index = change(read_index())
        text = format_json(index.with_files(lambda file: _relative(file, folder)))
        problem = f"cannot write {str(folder / _FILE)!r}"
        with os_errors_as(SettingsError, problem, "make room, or make it writable"):
            write_whole(folder / _FILE, text)
    return index


def record_file(
    path: Path,
    *,
    is_owned: bool,
    sha256: str | None = None,
    repository: str = "",
    revision: str = "",
    repository_file: str = "",
) -> StoredFile:
    """A record of the file as it is now. sha256: if it has just been taken. Raises OSError."""
    before = path.stat()
    digest = sha256 or hash_file(path)
    file = StoredFile(path, before.st_size, before.st_mtime_ns, digest, is_owned)
    if not looks_unchanged(file):
        raise ModelFileError(f"{str(path)!r} changed while it was read; try again when it is still")
    return replace(file, repository=repository, revision=revision, repository_file=repository_file)


def looks_unchanged(file: StoredFile) -> bool:
    """True if size and modification time are still those of the record. Raises OSError."""
    found = file.path.stat()
    return (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.mtime_ns)


def checked_path(record: InstalledModel, file: StoredFile) -> Path:
    """The path of a model's file, if it is still the one that was recorded.

    Compares size and modification time; where only the time differs it hashes the whole file
    (about a second a gigabyte) and, if that agrees, records the new time.
    Raises ModelFileError if the file is gone or has changed.
    """
    try:
        is_same = looks_unchanged(file)
    except OSError:
        is_same = False  # as `verified_again` will say
    if not is_same:
        renewed = verified_again(file, record.name)
        change_index(lambda index: index.with_files(lambda old: renewed if old == file else old))
    return file.path


def verified_again(file: StoredFile, name: str) -> StoredFile:
    """Hash the whole file against its record; the record with its present time if they agree.

    Raises ModelFileError if the file is gone or its content is another.
    """
    remedy = (
        f"get it again: safesteer-edge models pull {name}"
        if file.repository
        else f"if that was you: safesteer-edge models remove {name} --yes, then "
        f"models add {name} {os.fspath(file.path)}"
    )
    what = f"{str(file.path)!r} of model {name!r}"
    with os_errors_as(ModelFileError, f"cannot read {what}", remedy):
        found = file.path.stat()
        difference = ""
        if found.st_size != file.size_bytes:
            difference = f"{found.st_size} bytes, recorded {file.size_bytes}"
        elif (digest := hash_file(file.path)) != file.sha256:
            difference = f"SHA-256 {digest[:12]}…, recorded {file.sha256[:12]}…"
    if difference:
        raise ModelFileError(
            f"{what} has changed since its hash was recorded ({difference}); {remedy}"
        )
    return replace(file, mtime_ns=found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """What a file says of itself. problem: why it cannot be used; the rest is None then."""

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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing what lies in a folder. Raises SettingsError."""
    import filelock

    try:
        with filelock.FileLock(folder / "index.lock", timeout=_LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout as error:
        raise SettingsError(
            f"another program has held {str(folder / 'index.lock')!r} for {_LOCK_TIMEOUT_S} s; "
            "let it finish, or end it"
        ) from error


def _relative(file: StoredFile, folder: Path) -> StoredFile:
    """Inside the folder by its place there, so that it can be moved with what is in it."""
    inside = file.path.is_relative_to(folder)
    return replace(file, path=file.path.relative_to(folder)) if inside else file
