"""The part of a download that has come: a file named for its checksum, that never grows too long.

It outlives the process, so that a pull which was killed goes on where it stopped. One process at
a time writes to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from safesteer_edge.errors import DownloadError

_SYNC_BYTES = 64 << 20


class TooManyBytesError(Exception):
    """More bytes came than the file has."""


@dataclass(frozen=True, slots=True)
class PartialFile:
    """Where the part of one download lies."""

    path: Path

    @property
    def size_bytes(self) -> int:
        """How much has come; 0 if nothing has."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes off it. Raises DownloadError if one is at it now."""
        import filelock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        try:
            # The lock's own file stays: removing it would let two processes lock two files.
            with filelock.FileLock(lock_path, timeout=0):
                yield
        except filelock.Timeout as error:
            raise DownloadError(
                "another pull is downloading the same file; wait for it, or end it"
            ) from error

    @contextmanager
    def open(self, size_bytes: int, report: Callable[[int], None]) -> Iterator[PartialSink]:
        """Open it at its end. size_bytes: of the whole file; a longer part is given up."""
        mode = "r+b" if self.path.exists() else "x+b"
        with self.path.open(mode) as stream:
            sink = PartialSink(stream, size_bytes, report)
            if stream.seek(0, os.SEEK_END) > size_bytes:
                sink.discard()
            try:
                yield sink
            finally:
                stream.flush()
                os.fsync(stream.fileno())


class PartialSink:
    """What a download writes to: the few methods of a binary file that it needs."""

    def __init__(self, stream: IO[bytes], size_bytes: int, report: Callable[[int], None]) -> None:
        self._stream = stream
        self._size_bytes = size_bytes
        self._report = report
        self._unsynced = 0

    def write(self, data: bytes) -> int:
        """Append. Raises TooManyBytesError before a byte too many is written."""
        if self._stream.tell() + len(data) > self._size_bytes:
            raise TooManyBytesError
        n_written = self._stream.write(data)
        self._report(n_written)
        self._unsynced += n_written
        if self._unsynced >= _SYNC_BYTES:  # after a power cut, not all is lost
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._unsynced = 0
        return n_written

    def tell(self) -> int:
        """Where the next byte goes: how much has come."""
        return self._stream.tell()

    def seek(self, offset: int) -> int:
        """Go back to a byte; `truncate` then gives up what is after it."""
        self._report(offset - self._stream.tell())
        return self._stream.seek(offset)

    def truncate(self) -> int:
        """Give up what is after the present place."""
        return self._stream.truncate()

    def discard(self) -> None:
        """Give up all that has come."""
        self.seek(0)
        self.truncate()
