r"""Paths of pictures and sounds in what a person typed, pasted or dropped.

Terminals drop a file as its path: in quotes, with `\ ` for spaces, or as a file:// URL.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3"})
_TOKEN = re.compile(r"'[^'\n]+'|\"[^\"\n]+\"|(?:\\.|[^\s\\])+")
_MAX_TYPED_CHARACTERS = 20_000  # a longer paste is a text


def is_sound(path: Path) -> bool:
    """True if the name is one of a sound."""
    return path.suffix.lower() in SOUND_SUFFIXES


def is_media(path: Path) -> bool:
    """True if the name is one of a picture or a sound."""
    return path.suffix.lower() in IMAGE_SUFFIXES | SOUND_SUFFIXES


def split_media_paths(text: str) -> tuple[str, list[Path]]:
    """The text without the media files that it names, and those files; they exist."""
    if len(text) > _MAX_TYPED_CHARACTERS:
        return text, []
    whole = _as_path(text.strip())  # a path with bare spaces, as some terminals drop it
    if whole is not None:
        return "", [whole]
    paths: list[Path] = []
    kept: list[str] = []
    position = 0
    for token in _TOKEN.finditer(text):
        path = _as_path(token.group())
        if path is None:
            continue
        paths.append(path)
        kept.append(text[position : token.start()])
        position = token.end()
    if not paths:
        return text, []
    kept.append(text[position:])
    return re.sub(r"[ \t]+", " ", "".join(kept)).strip(), paths


def names_existing_path(text: str) -> bool:
    """True if the first word is a file or folder that exists: `/etc/hosts` is no slash command."""
    found = _TOKEN.match(text.strip())
    return found is not None and _exists(_unquoted(found.group()))


def _as_path(token: str) -> Path | None:
    path = _unquoted(token)
    return path if is_media(path) and _exists(path) else None


def _unquoted(token: str) -> Path:
    if len(token) > 1 and token[0] == token[-1] and token[0] in "'\"":
        token = token[1:-1]
    elif token.startswith("file://"):
        token = unquote(urlsplit(token).path)
    else:
        token = re.sub(r"\\(.)", r"\1", token)
    path = Path(token)
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody who is not there
        return path


def _exists(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()
    except (OSError, ValueError):  # too long a name, a null byte
        return False
