"""How far a long run is, and how long it will still take."""

from __future__ import annotations

import sys
import time
from typing import IO, Final

_EVERY_S: Final = 15.0
_EVERY_ON_A_TERMINAL_S: Final = 0.5


class Progress:
    """Counts on a stream: in place on a terminal, else a line now and then."""

    def __init__(self, n_all: int, what: str, *, stream: IO[str] | None = None) -> None:
        self._n_all = n_all
        self._what = what
        self._stream = stream or sys.stderr
        self._started_s = time.monotonic()
        self._shown_s = -1e9
        self._n_errors = 0
        self._n_done = 0

    def add(self, *, is_error: bool = False) -> None:
        """One more is done."""
        self._n_done += 1
        self._n_errors += is_error
        now = time.monotonic()
        on_terminal = self._stream.isatty()
        every = _EVERY_ON_A_TERMINAL_S if on_terminal else _EVERY_S
        if now - self._shown_s >= every or self._n_done == self._n_all:
            self._shown_s = now
            line = self.line(now - self._started_s)
            ends = "\n" if not on_terminal or self._n_done == self._n_all else ""
            start = "\r\x1b[K" if on_terminal else ""
            print(f"{start}[{line}]", end=ends, file=self._stream, flush=True)

    def line(self, elapsed_s: float) -> str:
        """E.g. `120/900 answers, 2 errors, 4 min left`."""
        parts = [f"{self._n_done}/{self._n_all} {self._what}"]
        if self._n_errors:
            parts.append(f"{self._n_errors} error{'s' if self._n_errors > 1 else ''}")
        left = self._n_all - self._n_done
        if left and self._n_done:
            parts.append(f"{_duration(elapsed_s / self._n_done * left)} left")
        elif not left:
            parts.append(f"took {_duration(elapsed_s)}")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
