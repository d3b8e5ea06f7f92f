"""What is asked of a file before anything decodes it, and what is said of one that is no good."""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from safesteer_edge.errors import MediaError

MediaKind = Literal["image", "sound", "document"]
# A decoding process' own: a request and a file's bytes to what is told about it, and its content.
Answer = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]

IMAGE_SUFFIXES: Final = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".heic", ".heif", ".hif", ".avif"}
)
SOUND_SUFFIXES: Final = frozenset({".wav", ".flac", ".mp3"})


_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def local_path(text: str) -> Path:
    """The file that was named: a path, or a file:// URL. Raises MediaError for any other URL."""
    scheme = _URL.match(text)
    if scheme is None:
        return Path(text)
    if scheme[1].lower() != "file":
        raise MediaError(
            f"cannot read {text[:200]!r}: nothing is fetched from the network; download it, and "
            "give the file's path"
        )
    path = unquote(urlsplit(text).path)
    return Path(path.lstrip("/") if os.name == "nt" else path)


def data_uri_bytes(text: str) -> bytes | None:
    """The picture file that a data URI holds; None: it is none. Raises MediaError."""
    if text[:5].lower() != "data:":
        return None
    head, comma, data = text[5:].partition(",")
    kind, *parameters = (each.strip().lower() for each in head.split(";"))
    shown = repr(text[:40])
    if not comma or not kind.startswith("image/"):
        raise MediaError(f"cannot read data URI {shown}…: expected data:image/…;base64,…")
    content = unquote_to_bytes(data)
    if "base64" in parameters:
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except ValueError as error:
            raise MediaError(f"cannot read data URI {shown}…: no base64; copy it whole") from error
    return content


def kind_of(path: Path) -> MediaKind:
    """By its name; what is neither picture nor sound is read as a document, if it is one."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "sound" if suffix in SOUND_SUFFIXES else "document"


def read_media_file(path: Path, kind: MediaKind, *, max_bytes: int) -> bytes:
    """Its bytes. Raises MediaError unless it is a regular file (a pipe would hang) in bounds."""
    name = repr(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MediaError(f"cannot read {kind} {name}: it is not a file; check the path")
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
            size_bytes = max(stream.seek(0, os.SEEK_END), len(data))
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"cannot read {kind} {name}: {reason}; check the path") from error
    if not data:
        raise MediaError(f"{kind} {name} is an empty file; get it again")
    if size_bytes > max_bytes:
        raise MediaError(
            f"{kind} {name} has {size_bytes} bytes; the limit is {max_bytes}; make it smaller first"
        )
    return data


def answers(decode: Answer) -> Answer:
    """The same, with errors as answers."""

    def answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            return decode(request, data)
        except MediaError as error:
            return {"error": str(error)}, b""
        except MemoryError:
            return {"error": f"{request['name']} needs too much memory to decode"}, b""

    return answer
