"""A file that is here with the right content: the library's own, or another program's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.library.hub import RemoteFile
from safesteer_edge.library.index import read_index
from safesteer_edge.library.install import link_in, place_for
from safesteer_edge.library.stored_file import StoredFile, hash_file, looks_unchanged

# -- models that other programs keep on this machine, so that nothing is downloaded twice ----------
# Ollama and huggingface_hub name files by their SHA-256; LM Studio and llama.cpp by their
# repository, so that theirs are found by size. Whatever is found is only a candidate: the caller
# hashes it.

_MAX_LISTED = 20_000  # files looked at below a folder that people fill by hand
_LM_STUDIO_SETTINGS = 1 << 20


def candidate_copies(checksum: str, size_bytes: int) -> Iterator[Path]:
    """Files that may hold this content, the surest first. Reads folders, not the files."""
    for path in _named_by_hash(checksum):
        if _size(path) == size_bytes:
            yield path
    for folder in _folders_of_names():
        for path in _gguf_files(folder):
            if _size(path) == size_bytes:
                yield path


def _named_by_hash(checksum: str) -> Iterator[Path]:
    for folder in _ollama_folders():
        yield folder / "blobs" / f"sha256-{checksum}"
    yield from _glob(_hub_cache(), f"models--*/blobs/{checksum}")


def _ollama_folders() -> Iterator[Path]:
    configured = os.environ.get("OLLAMA_MODELS")
    if configured:
        yield Path(configured).expanduser()
    yield Path.home() / ".ollama" / "models"
    yield Path("/usr/share/ollama/.ollama/models")  # where its service runs on Linux


def _hub_cache() -> Path:
    """Where huggingface_hub keeps files; its own variables, read without importing it."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if cache:
        return Path(cache).expanduser()
    general = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or Path(general) / "huggingface").expanduser() / "hub"


def _folders_of_names() -> Iterator[Path]:
    home = Path.home()
    yield home / ".lmstudio" / "models"
    yield home / ".cache" / "lm-studio" / "models"  # its name before version 0.3
    yield from _lm_studio_choice(home / ".lmstudio" / "settings.json")
    configured = os.environ.get("LLAMA_CACHE")
    yield Path(configured) if configured else home / ".cache" / "llama.cpp"


def _lm_studio_choice(settings: Path) -> Iterator[Path]:
    try:
        if settings.stat().st_size > _LM_STUDIO_SETTINGS:
            return
        folder = json.loads(settings.read_text("utf-8"))["downloadsFolder"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # another program's file: what it holds is a hint, not an input of ours
    if isinstance(folder, str) and folder:
        yield Path(folder).expanduser()


def _gguf_files(folder: Path) -> Iterator[Path]:
    n_listed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            n_listed += 1
            if n_listed > _MAX_LISTED:
                return
            if name.lower().endswith(".gguf"):
                yield Path(parent, name)


def _glob(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        yield from folder.glob(pattern)
    except OSError:
        return


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


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
