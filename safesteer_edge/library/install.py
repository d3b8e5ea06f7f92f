"""Where files lie in the library; adding what is on this machine already, removing, verifying."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from safesteer_edge.errors import ModelFileError, SettingsError, os_errors_as
from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.formats.model_file import check_language_model, check_projector_fits
from safesteer_edge.library.catalogue import load_catalogue
from safesteer_edge.library.hub import RemoteFile
from safesteer_edge.library.index import (
    Index,
    InstalledModel,
    Modality,
    StoredFile,
    change_index,
    library_folder,
    looks_unchanged,
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


# -- files that are on this machine already, so that nothing is downloaded twice -------------------
# The library's own, and those of other programs. Ollama and huggingface_hub name files by their
# SHA-256; LM Studio and llama.cpp by their repository, so that theirs are found by size. Whatever
# is found is only a candidate until its hash was taken.

_MAX_LISTED = 20_000  # files looked at below a folder that people fill by hand
_MAX_SETTINGS_BYTES = 1 << 20


def find_copy(place: Path, remote: RemoteFile, narrate: Callable[[str], None]) -> StoredFile | None:
    """A record of a copy of the file; it gets its place in the library where that can be."""
    for file in (file for model in read_index().models for file in model.files):
        with suppress(OSError):
            if file.sha256 == remote.checksum and looks_unchanged(file):
                return _linked(remote, file.path, place, is_owned=file.is_owned)
    if place.is_file() and has_checksum(place, remote):
        return record_remote(remote, place, is_owned=True)
    for path in _candidates(remote):
        with suppress(OSError):  # another user's file
            if has_checksum(path, remote):
                narrate(f"{remote.name}: already on this machine, {path}")
                return _linked(remote, path, place, is_owned=False)
    return None


def record_remote(remote: RemoteFile, path: Path, *, is_owned: bool) -> StoredFile:
    """The record of a file whose checksum was found to be right. Raises OSError."""
    return record_file(
        path,
        is_owned=is_owned,
        sha256=remote.sha256,
        repository=remote.repository,
        revision=remote.revision,
        repository_file=remote.name,
    )


def has_checksum(path: Path, remote: RemoteFile) -> bool:
    """Whether this is the content. About a second a gigabyte. Raises OSError."""
    if path.stat().st_size != remote.size_bytes:
        return False
    if remote.sha256 is not None:
        return hash_file(path) == remote.sha256
    # A file that the hub keeps in git itself: git's own hash of a blob.
    prefix = f"blob {remote.size_bytes}\0".encode()
    return hash_file(path, prefix=prefix, algorithm="sha1") == remote.checksum


def _linked(remote: RemoteFile, path: Path, place: Path, *, is_owned: bool) -> StoredFile:
    """A second name in the library for a file that is here; or the file where it is."""
    if path != place:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            os.link(path.resolve(), place)
        except OSError:  # the file system will not
            return record_remote(remote, path, is_owned=is_owned)
    return record_remote(remote, place, is_owned=True)


def _candidates(remote: RemoteFile) -> Iterator[Path]:
    """Files that may hold this content, the surest first. Reads folders, not the files."""
    for path in chain(_named_by_hash(remote.checksum), _gguf_files()):
        with suppress(OSError):
            if path.is_file() and path.stat().st_size == remote.size_bytes:
                yield path


def _named_by_hash(checksum: str) -> Iterator[Path]:
    configured = os.environ.get("OLLAMA_MODELS")
    folders = [Path(configured).expanduser()] if configured else []
    # The last is where its service runs on Linux.
    folders += [Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")]
    for folder in folders:
        yield folder / "blobs" / f"sha256-{checksum}"
    with suppress(OSError):
        yield from _hub_cache().glob(f"models--*/blobs/{checksum}")


def _hub_cache() -> Path:
    """Where huggingface_hub keeps files; its own variables, read without importing it."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if cache:
        return Path(cache).expanduser()
    general = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or Path(general) / "huggingface").expanduser() / "hub"


def _gguf_files() -> Iterator[Path]:
    home = Path.home()
    configured = os.environ.get("LLAMA_CACHE")
    for folder in (
        home / ".lmstudio" / "models",
        home / ".cache" / "lm-studio" / "models",  # its name before version 0.3
        _lm_studio_choice(home / ".lmstudio" / "settings.json"),
        Path(configured) if configured else home / ".cache" / "llama.cpp",
    ):
        n_listed = 0
        for parent, _, names in os.walk(folder) if folder is not None else ():
            yield from (Path(parent, name) for name in names if name.lower().endswith(".gguf"))
            n_listed += len(names)
            if n_listed > _MAX_LISTED:
                break


def _lm_studio_choice(settings: Path) -> Path | None:
    try:
        if settings.stat().st_size > _MAX_SETTINGS_BYTES:
            return None
        folder = load_json(settings.read_bytes())["downloadsFolder"]
        return Path(folder).expanduser() if folder else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # another program's file: what it holds is a hint, not an input of ours
