"""What is asked of a media file before anything decodes it: that it is one, and not too large."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safesteer_edge.errors import MediaError

MediaKind = Literal["image", "sound"]


def read_media_file(path: Path, kind: MediaKind, *, max_bytes: int) -> bytes:
    """Its bytes. Raises MediaError unless it is a regular file (a pipe would hang) in bounds."""
    name = repr(str(path))
    try:
        size_bytes = path.stat().st_size
        if not path.is_file():
            raise MediaError(f"cannot read {kind} {name}: it is not a file; check the path")
        if size_bytes > max_bytes:
            raise _too_large(kind, name, size_bytes, max_bytes)
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)  # it may have grown
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"cannot read {kind} {name}: {reason}; check the path") from error
    if len(data) > max_bytes:
        raise _too_large(kind, name, len(data), max_bytes)
    return data


def _too_large(kind: str, name: str, size_bytes: int, max_bytes: int) -> MediaError:
    return MediaError(
        f"{kind} {name} has {size_bytes} bytes; the limit is {max_bytes}; make it smaller first"
    )
