"""The SHA-256 of a file's content."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK_BYTES = 8 << 20


def file_sha256(path: Path) -> str:
    """The hash in hex. Takes some 3 s for each 4 GiB. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
