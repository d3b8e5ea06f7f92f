"""Noticing that the terminal is gone, where nothing sends a signal: a closed window in a container.

Textual goes on reading the end of its input then, as fast as it can, and waits for ever to write.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

# What a shell reports of a program that a hangup ended: 128 and SIGHUP.
_HANGUP_EXIT_CODE = 129


def leave_with_terminal(fd: int, save: Callable[[], None]) -> None:
    """End the process when the terminal of `fd` has gone, after `save`, which a thread calls.

    Nothing can be drawn any more, and the application may wait for that: so it is not asked.
    """
    if not hasattr(select, "poll"):  # Windows ends a program with its console
        return

    def wait() -> None:
        terminal = select.poll()
        terminal.register(fd, 0)  # an end is told in any case
        terminal.poll()
        try:
            save()
        finally:
            os._exit(_HANGUP_EXIT_CODE)

    threading.Thread(target=wait, name="terminal-watch", daemon=True).start()
