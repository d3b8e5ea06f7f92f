"""The application in a pseudo-terminal, timed from outside, as a person has it. POSIX only."""

from __future__ import annotations

import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

_COLUMNS, _ROWS = 120, 40
# Letters that no answer has: each key has its own, so that its echo can be told from the answer.
_FIRST_LETTER = 0x0180
_KEY_PAUSE_S = 0.12
_PATIENCE_S = 180.0


class MeasuredTerminal:
    """A Python module that draws, in a terminal of 120×40 with a home of its own."""

    def __init__(self, folder: str, arguments: Sequence[str]) -> None:
        """folder: an empty one. arguments: of the interpreter, from `-m` on."""
        self._main, side = pty.openpty()
        ioctl(side, TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        folders = {f"XDG_{kind}_HOME": folder for kind in ("DATA", "CONFIG", "CACHE")}
        chats = Path(folder) / "safesteer-edge" / "chats"
        chats.mkdir(parents=True)
        (chats / "been-here.jsonl").touch()  # else the first run explains itself
        self._n_letters = 0
        self.started_s = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, **folders, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(side)
        self.output = b""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._main, text.encode())

    def wait_for(self, *wanted: bytes) -> float:
        """Seconds until all of these were drawn since the last call."""
        started_s = time.perf_counter()
        self.output = b""
        while not all(each in self.output for each in wanted):
            left_s = started_s + _PATIENCE_S - time.perf_counter()
            if left_s <= 0 or not self._read(left_s):
                raise TimeoutError(f"the chat did not draw {wanted!r}: {self.output[-500:]!r}")
        return time.perf_counter() - started_s

    def time_key(self) -> float:
        """Seconds from a key to its letter on the screen; what else is drawn stays in `output`."""
        self._n_letters += 1
        letter = chr(_FIRST_LETTER + self._n_letters)
        self.type(letter)
        waited_s = self.wait_for(letter.encode())
        self._drain(_KEY_PAUSE_S)
        return waited_s

    def close(self) -> None:
        """Leave by Ctrl+Q, or by force."""
        self.type("\x11")
        deadline_s = time.perf_counter() + 10
        while self._process.poll() is None and time.perf_counter() < deadline_s:
            self._drain(0.05)  # a full terminal would hold it
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._main)

    def _drain(self, seconds: float) -> None:
        """Read what comes for a while."""
        until_s = time.perf_counter() + seconds
        while (left_s := until_s - time.perf_counter()) > 0 and self._read(left_s):
            pass

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._main], [], [], timeout_s)
        if ready:
            try:
                self.output += os.read(self._main, 1 << 16)
            except OSError:  # it has left
                return False
        return bool(ready)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile by nearest rank: one of the values."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
