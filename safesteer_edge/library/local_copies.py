"""Files that are on this machine already, so that nothing is downloaded twice.

The library's own, and those of other programs. Ollama and huggingface_hub name files by their
SHA-256; LM Studio and llama.cpp by their repository, so that theirs are found by size. Whatever is
found is only a candidate until its hash was taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.library.hub import RemoteFile
from safesteer_edge.library.index import StoredFile, looks_unchanged, read_index, record_file

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
