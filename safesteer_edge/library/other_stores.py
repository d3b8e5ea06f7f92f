"""Models that other programs keep on this machine, so that nothing is downloaded twice.

Ollama and huggingface_hub name files by their SHA-256; LM Studio and llama.cpp by their repository,
so that theirs are found by size. Whatever is found is only a candidate: the caller hashes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

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
