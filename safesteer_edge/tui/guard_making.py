"""A guard made from within the chat: `calibrate` in a process of its own, its progress shown."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence

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
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=nothing, stdout=nothing, stderr=pipe
    )
    line = ""
    try:
        assert process.stderr is not None  # it is a pipe
        async for raw in process.stderr:
            line = strip_control_characters(raw.decode("utf-8", "replace")).strip() or line
            show(line)
        await process.wait()
    finally:
        if process.returncode is None:
            if sys.platform == "win32":
                process.terminate()
            else:
                process.send_signal(signal.SIGINT)
    if process.returncode:
        raise BundleError(f"no guard was made: {line.removeprefix('safesteer-edge: ')}")
