"""The files of a guard bundle, reached by plain names and checked before they are used."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from safesteer_edge.bundle.require import require
from safesteer_edge.bundle.schema import GuardConfig, is_plain_name
from safesteer_edge.errors import BundleError

CONFIG_NAME = "guard.json"
MAX_PROBE_BYTES = 64 * 1024 * 1024
MAX_VECTOR_BYTES = 64 * 1024 * 1024

_GUARDED_SUFFIXES = (".onnx", ".gguf")


def read_bundle_file(folder: Path, name: str, *, max_bytes: int) -> bytes:
    """Return the content of a regular file that lies in the bundle's own folder.

    Raises BundleError if it is missing, leads out of the folder (a path, a link), is no regular
    file (a pipe would hang the reader), is larger than max_bytes, or cannot be read.
    """
    path = inner_path(folder, name)
    try:
        size_bytes = path.stat().st_size
        require(
            size_bytes <= max_bytes,
            f"{str(path)!r} has {size_bytes} bytes; expected at most {max_bytes}",
        )
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise BundleError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    require(len(data) <= max_bytes, f"{str(path)!r} grew beyond {max_bytes} bytes")
    return data


def inner_path(folder: Path, name: str) -> Path:
    """Return the path of a bundle's file after checking that it is inside and regular."""
    require(is_plain_name(name), f"{name!r} is not a plain file name")
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        is_regular = stat.S_ISREG(resolved.stat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise BundleError(
            f"guard bundle {str(folder)!r} has no file {name!r}; get the bundle again, or make "
            "one with 'safesteer-edge calibrate'"
        ) from error
    require(
        resolved.parent == folder.resolve(),
        f"{str(path)!r} is a link out of the bundle's folder; put the file itself there",
    )
    require(is_regular, f"{str(path)!r} is not a regular file")
    return path


def check_sha256(data: bytes, expected: str, path: Path) -> None:
    """Raise BundleError unless this is the content that guard.json lists."""
    found = hashlib.sha256(data).hexdigest()
    require(
        found == expected,
        f"{str(path)!r} is damaged or exchanged: its SHA-256 is {found}, guard.json lists "
        f"{expected}; get the bundle again",
    )


def check_nothing_unlisted(folder: Path, config: GuardConfig) -> None:
    """Raise BundleError for a probe or vector in the folder that guard.json does not list."""
    listed = {config.probe.file, *([config.vector.file] if config.vector else [])}
    unlisted = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name.lower().endswith(_GUARDED_SUFFIXES) and entry.name not in listed
    )
    require(
        not unlisted,
        f"guard bundle {str(folder)!r} holds {unlisted[0] if unlisted else ''!r}, which guard.json "
        "does not list; remove it",
    )
