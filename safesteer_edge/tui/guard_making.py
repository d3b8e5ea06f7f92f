"""A guard made from within the chat: `calibrate` in a process of its own, its progress shown."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from safesteer_edge.errors import BundleError
from safesteer_edge.formats.display_text import strip_control_characters


def calibrate_command(model: str) -> list[str]:
    """What makes a guard for a model and puts it where sessions find it."""
    return [sys.executable, "-m", "safesteer_edge", "calibrate", model]


async def make_guard(command: Sequence[str], show: Callable[[str], None]) -> None:
    """Run it to its end. show: called with each line of its progress.

    If this is cancelled the process is interrupted: what it has read, the next run finds.
    Raises BundleError with the last line if it fails.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )

    def read() -> None:
        assert process.stderr is not None  # it is a pipe
        with suppress(RuntimeError), process.stderr:  # the loop may have ended
            for line in process.stderr:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            process.wait()
            loop.call_soon_threadsafe(lines.put_nowait, None)

    # A thread: what asyncio keeps of a process does not outlive its loop.
    threading.Thread(target=read, name="guard", daemon=True).start()
    last = ""
    try:
        while (line := await lines.get()) is not None:
            last = strip_control_characters(line).strip() or last
            show(last)
    finally:
        if process.poll() is None and sys.platform == "win32":
            process.terminate()
        elif process.poll() is None:
            process.send_signal(signal.SIGINT)
    if process.returncode:
        raise BundleError(f"no guard was made: {last.removeprefix('safesteer-edge: ')}")
