"""The file of one chat: read tolerantly, written by one instance at a time, only at its end.

A record is written by one call, so a kill can only tear the last line; whoever opens the file for
writing cuts a torn line off. Answers' text waits up to a quarter of a second for more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.records import (
    AnswerEnded,
    ChatHeader,
    Record,
    TextAdded,
    record_from_line,
    record_to_line,
)
from safesteer_edge.errors import ChatFileError, ChatStoreError, os_errors_as

MAX_CHAT_BYTES: Final = 256 << 20
FLUSH_S: Final = 0.25
_SEE: Final = "see 'safesteer-edge chats list'"
_WINDOWS_LOCK_OFFSET: Final = 1 << 40  # Windows forbids reading a locked byte: one no file has
_FLAGS: Final = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; False: somebody has it, and we do not wait.

    Other instances of the program see it, and it ends when the file is closed.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.05)
    import fcntl

    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True


def read_chat(path: Path) -> ChatLog:
    """The chat in a file, without a torn last line. Raises ChatFileError for any other damage."""
    with os_errors_as(ChatFileError, f"cannot read chat {str(path)!r}", _SEE):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise ChatFileError(f"cannot read chat {str(path)!r}: it is not a file; move it away")
        if path.stat().st_size > MAX_CHAT_BYTES:
            raise ChatFileError(
                f"cannot read chat {str(path)!r}: it has more than {MAX_CHAT_BYTES >> 20} MiB; "
                "move it away"
            )
        data = path.read_bytes()
    lines = data.split(b"\n")[:-1]  # what follows the last line end is nothing, or a torn line
    try:
        return ChatLog.of(map(record_from_line, lines))
    except ChatFileError as error:
        raise ChatFileError(
            f"cannot read chat {str(path)!r}: {error}; it is damaged, or of a newer version: move "
            "it away, or update"
        ) from error


class ChatFile:
    """A chat that this process writes to. Close it. Any thread may write; one at a time does.

    log: the chat with every record that was added, on disk yet or not.
    """

    def __init__(self, path: Path, descriptor: int, log: ChatLog) -> None:
        """Not for callers: `create` and `open`."""
        self.path = path
        self.log = log
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._pending: list[TextAdded] = []
        self._has_pending = threading.Event()
        self._is_closed = False
        self._unsaved = b""
        self._error: ChatStoreError | None = None
        threading.Thread(target=self._flush_in_time, name="chat-file", daemon=True).start()

    @classmethod
    def create(cls, path: Path, header: ChatHeader) -> ChatFile:
        """Make the file of a new chat, for its user alone. Raises ChatStoreError."""
        with _saving(path):
            descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        lock(descriptor)
        file = cls(path, descriptor, ChatLog(header))
        try:
            file._write(record_to_line(header))
        except ChatStoreError:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return file

    @classmethod
    def open(cls, path: Path) -> ChatFile:
        """Open a chat to go on with it, and cut off what a kill left torn.

        Raises ChatFileError if it is damaged, or open in another instance of the program.
        """
        with os_errors_as(ChatFileError, f"cannot open chat {str(path)!r}", _SEE):
            descriptor = os.open(path, _FLAGS)
        try:
            if not lock(descriptor):
                raise ChatFileError(
                    f"chat {path.stem!r} is open in another window; close it there, or go on "
                    "with a copy"
                )
            if os.fstat(descriptor).st_nlink == 0:
                raise ChatFileError(f"chat {path.stem!r} was deleted in another window")
            log = read_chat(path)
            os.truncate(descriptor, path.read_bytes().rfind(b"\n") + 1)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, log)

    def add(self, record: Record) -> None:
        """Add a record, after the text that waits. Raises ChatStoreError, ChatFileError.

        Text of an answer waits for more: it is on the disk within FLUSH_S.
        """
        with self._lock:
            self.log.apply(record)
            if isinstance(record, TextAdded):
                self._pending.append(record)
                self._has_pending.set()
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return
            self._write(self._take_pending() + record_to_line(record))
            if isinstance(record, AnswerEnded):
                # A kill loses nothing that is written; this is for power cuts, and takes
                # milliseconds that a question or a first token should not wait for.
                with contextlib.suppress(OSError):
                    os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what waits, and let others have the chat. Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._has_pending.set()
            try:
                if self._pending or self._unsaved:
                    self._write(self._take_pending())
            finally:
                os.close(self._descriptor)

    def __enter__(self) -> ChatFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- private ----------------------------------------------------------------------------------

    def _take_pending(self) -> bytes:
        """The text that waits, as one record for each run of one answer's pieces."""
        merged: list[TextAdded] = []
        for record in self._pending:
            last = merged[-1] if merged else None
            if last is not None and (last.id, last.part) == (record.id, record.part):
                merged[-1] = replace(last, text=last.text + record.text)
            else:
                merged.append(record)
        self._pending.clear()
        self._has_pending.clear()
        return b"".join(record_to_line(record) for record in merged)

    def _write(self, data: bytes) -> None:
        """Append whole lines, or nothing; what a full disk refused goes first next time."""
        self._unsaved += data
        size_bytes = os.fstat(self._descriptor).st_size
        with _saving(self.path):
            n_written = os.write(self._descriptor, self._unsaved)
            if n_written < len(self._unsaved):
                os.truncate(self._descriptor, size_bytes)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unsaved = b""

    def _flush_in_time(self) -> None:
        pause = threading.Event()
        while not self._is_closed:
            self._has_pending.wait()
            pause.wait(FLUSH_S)
            with self._lock:
                if self._is_closed or not self._pending:
                    continue
                try:
                    self._write(self._take_pending())
                except ChatStoreError as error:
                    self._error = error  # whoever adds text next is told


def _saving(path: Path) -> contextlib.AbstractContextManager[None]:
    remedy = (
        "free some space or make the folder writable; until then the chat is kept in memory only"
    )
    return os_errors_as(ChatStoreError, f"cannot save chat {str(path)!r}", f"{remedy} alone")
