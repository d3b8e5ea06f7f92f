"""Writing a file so that it is either the old one or the new one, never half of it; its hash."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

_CHUNK_BYTES = 8 << 20


@contextmanager
def atomic_write(path: Path, mode: Literal["wb", "w"] = "wb") -> Generator[IO[Any], None, None]:
    """Yield a file that takes the place of `path` when the block ends without an error.

    mode: 'wb' for bytes, 'w' for UTF-8 text with '\\n' line ends on every system.
    The new content goes to a temporary file in the same folder (so that renaming it is atomic),
    is flushed to the disk, and is deleted if the block or the writing fails; `path` is then as
    it was. An existing file's permissions are kept, a new file's follow the umask.
    Raises OSError where the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # 'x': following no link that somebody laid there.
    file = (
        temporary.open("xb")
        if mode == "wb"
        else temporary.open("x", encoding="utf-8", newline="\n")
    )
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
    except BaseException:  # an interrupt must not leave the temporary file behind either
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """`atomic_write` of content that is there already. Raises OSError."""
    with atomic_write(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def hash_file(path: Path, *, prefix: bytes = b"", algorithm: str = "sha256") -> str:
    """The hash in hex of prefix and content. Takes about a second a gigabyte. Raises OSError."""
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
