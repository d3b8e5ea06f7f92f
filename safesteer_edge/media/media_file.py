"""What is asked of a media file before anything opens it: that it is one, and not too large."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safesteer_edge.errors import MediaError


def check_media_file(path: Path, kind: Literal["image", "sound"], *, max_bytes: int) -> None:
    """Raise MediaError unless this is a regular file (a pipe would hang the reader) in bounds."""
    name = repr(str(path))
    try:
        size_bytes = path.stat().st_size
        is_file = path.is_file()
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"cannot read {kind} {name}: {reason}; check the path") from error
    if not is_file:
        raise MediaError(f"cannot read {kind} {name}: it is not a file; check the path")
    if size_bytes > max_bytes:
        raise MediaError(
            f"{kind} {name} has {size_bytes} bytes; the limit is {max_bytes}; make it smaller first"
        )
