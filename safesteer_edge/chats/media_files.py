"""Pictures, sounds and documents of chats: copies named by their content, for their user alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from safesteer_edge.chats.file_lock import wait_for_lock
from safesteer_edge.chats.records import StoredKind, StoredMedia
from safesteer_edge.errors import ChatStoreError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.media.media_file import read_media_file

_MAX_BYTES: Final = {"image": 20 << 20, "audio": 128 << 20, "document": 20 << 20}
_SUFFIX: Final = re.compile(r"\.[a-z0-9]{1,5}")
_NAME: Final = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]{1,5})?")
_LOCK_NAME: Final = ".lock"


class MediaFiles:
    """The media folder of a chat store. A file in it is never changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, media: StoredMedia) -> Path:
        """Where a medium lies, whether it is there or not; always inside the folder."""
        name = media.file if _NAME.fullmatch(media.file) else media.sha256
        return self._folder / Path(name).name

    def add(self, path: Path, kind: StoredKind, name: str = "") -> StoredMedia:
        """Copy a file in, unless it is there. name: what it is called, if not as the file is.

        Raises MediaError, ChatStoreError.
        """
        what = "sound" if kind == "audio" else kind
        data = read_media_file(path, what, max_bytes=_MAX_BYTES[kind])
        try:
            sha256 = hashlib.sha256(data).hexdigest()
            suffix = path.suffix.lower()
            file = sha256 + (suffix if _SUFFIX.fullmatch(suffix) else "")
            target = self._folder / file
            if not target.exists():
                with atomic_write(target) as stream:
                    stream.write(data)
                target.chmod(0o600)
        except OSError as error:
            raise ChatStoreError(
                f"cannot keep a copy of {str(path)!r}: {error.strerror or error}; free some space "
                "or make the folder writable"
            ) from error
        return StoredMedia(kind, sha256, file, name or path.name)

    def remove_all_but(self, used: Collection[str]) -> None:
        """Delete the files whose names are not among these. Hold the lock."""
        for file in self._folder.iterdir():
            if _NAME.fullmatch(file.name) and file.name not in used:
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, *, shared: bool) -> Iterator[None]:
        """Keep other instances from deleting media (shared), or from adding any."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK_NAME, flags, 0o600)
        except OSError as error:
            raise ChatStoreError(
                f"cannot use the folder {str(self._folder)!r}: {error.strerror or error}; make it "
                "writable"
            ) from error
        try:
            wait_for_lock(descriptor, shared=shared)
            yield
        finally:
            os.close(descriptor)
