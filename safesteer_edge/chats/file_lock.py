"""Locks that other instances of the program see, and that end with the process that holds them."""

from __future__ import annotations

import os
import sys
import time


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file if nobody else has; False: somebody has. Ends when the file is closed."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, *, shared: bool = False) -> None:
    """Lock an open file, waiting for whoever has it."""
    if sys.platform == "win32":
        while not try_lock(descriptor, shared=shared):
            time.sleep(0.05)
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


# Windows forbids reading a locked byte: lock one that no file has.
_WINDOWS_LOCK_OFFSET = 1 << 40
