"""A file of the library with its hash, and the cheap question whether it is still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safesteer_edge.errors import ModelFileError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was recorded about a file when its hash was taken.

    mtime_ns: its modification time then; size and time stand in for the hash from then on.
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
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ModelFileError(f"{str(path)!r} changed while it was read; try again when it is still")
    return StoredFile(
        path=path,
        size_bytes=after.st_size,
        mtime_ns=after.st_mtime_ns,
        sha256=digest,
        is_owned=is_owned,
        repository=repository,
        revision=revision,
        repository_file=repository_file,
    )


def hash_file(
    path: Path,
    *,
    prefix: bytes = b"",
    algorithm: str = "sha256",
    report: Callable[[int], None] | None = None,
) -> str:
    """Hash of prefix and file, lower-case hex. Takes about a second a gigabyte. Raises OSError.

    report: called with the number of bytes read, after each piece of at most 1 MiB.
    """
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
            if report is not None:
                report(len(piece))
    return digest.hexdigest()


def looks_unchanged(file: StoredFile) -> bool:
    """True if size and modification time are still those of the record. Raises OSError."""
    found = file.path.stat()
    return (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.mtime_ns)


def verified_again(file: StoredFile, name: str) -> StoredFile:
    """Hash the whole file against its record; the record with its present time if they agree.

    Raises ModelFileError if the file is gone or its content is another.
    """
    try:
        found = file.path.stat()
        if found.st_size != file.size_bytes:
            raise changed_error(file, name, f"{found.st_size} bytes, recorded {file.size_bytes}")
        digest = hash_file(file.path)
    except OSError as error:
        raise gone_error(file, name, error) from error
    if digest != file.sha256:
        raise changed_error(file, name, f"SHA-256 {digest[:12]}…, recorded {file.sha256[:12]}…")
    return replace(file, mtime_ns=found.st_mtime_ns)


def changed_error(file: StoredFile, name: str, difference: str) -> ModelFileError:
    """The error about content that is not what was recorded."""
    return ModelFileError(
        f"{str(file.path)!r} of model {name!r} has changed since its hash was recorded "
        f"({difference}); {_remedy(file, name)}"
    )


def gone_error(file: StoredFile, name: str, error: OSError) -> ModelFileError:
    """The error about a file that cannot be read any more."""
    return ModelFileError(
        f"cannot read {str(file.path)!r} of model {name!r}: {error.strerror or error}; "
        f"{_remedy(file, name)}"
    )


def _remedy(file: StoredFile, name: str) -> str:
    if file.repository:
        return f"get it again: safesteer-edge models pull {name}"
    quoted = os.fspath(file.path)
    return (
        f"if that was you: safesteer-edge models remove {name} --yes, then "
        f"models add {name} {quoted}"
    )
