"""A file that is here with the right content: the library's own, or another program's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.library.hub import RemoteFile
from safesteer_edge.library.index import read_index
from safesteer_edge.library.install import link_in, place_for
from safesteer_edge.library.other_stores import candidate_copies
from safesteer_edge.library.stored_file import StoredFile, hash_file, looks_unchanged

_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class HadFile:
    """A file that is here with the right content. is_new: its name in the library is to come.

    path: where it is now. is_owned: it lies, or will lie, in the library's folder.
    """

    remote: RemoteFile
    path: Path
    is_owned: bool
    sha256: str
    is_new: bool = False


def find_here(name: str, remote: RemoteFile, narrate: Callable[[str], None]) -> HadFile | None:
    """A copy of the file on this machine: the library's own, or another program's."""
    place = place_for(name, remote.checksum, remote.name)
    for model in read_index().models:
        for file in model.files:
            if file.sha256 == remote.checksum and _is_unchanged(file):
                return _linked(name, remote, file.path, file.sha256, is_owned=file.is_owned)
    if place.is_file() and has_checksum(place, remote):
        return HadFile(remote, place, is_owned=True, sha256=sha256_of(place, remote))
    for path in candidate_copies(remote.checksum, remote.size_bytes):
        try:
            is_same = has_checksum(path, remote)
        except OSError:  # another user's file
            continue
        if is_same:
            narrate(f"{remote.name}: already on this machine, {path}")
            return _linked(name, remote, path, sha256_of(path, remote), is_owned=False)
    return None


def _linked(name: str, remote: RemoteFile, path: Path, sha256: str, *, is_owned: bool) -> HadFile:
    """A second name in the library for a file that is here; or the file where it is."""
    place = place_for(name, remote.checksum, remote.name)
    if path == place:
        return HadFile(remote, path, is_owned=True, sha256=sha256)
    if link_in(path, place):
        return HadFile(remote, place, is_owned=True, sha256=sha256)
    return HadFile(remote, path, is_owned=is_owned, sha256=sha256)


def _is_unchanged(file: StoredFile) -> bool:
    try:
        return looks_unchanged(file)
    except OSError:
        return False


def has_checksum(path: Path, remote: RemoteFile) -> bool:
    if path.stat().st_size != remote.size_bytes:
        return False
    if len(remote.checksum) == _SHA256_DIGITS:
        return hash_file(path) == remote.checksum
    # A file that the hub keeps in git itself: git's own hash of a blob.
    prefix = f"blob {remote.size_bytes}\0".encode()
    return hash_file(path, prefix=prefix, algorithm="sha1") == remote.checksum


def sha256_of(path: Path, remote: RemoteFile) -> str:
    is_known = len(remote.checksum) == _SHA256_DIGITS
    return remote.checksum if is_known else hash_file(path)
