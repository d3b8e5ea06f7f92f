"""Record docs/recordings/chat.cast: `python docs/make_recording.py` in the clone (POSIX).

It types into the real application, on the embedded model, in a pseudo-terminal of 100×30, and
writes what is drawn in asciinema's format. Pauses are cut to half a second.
"""

from __future__ import annotations

import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

COLUMNS, ROWS = 100, 30
MAX_PAUSE_S = 0.5
OPTIONS = ("--temperature", "0", "--max-tokens", "64", "--threads", "1")
# What is typed, and what is waited for after it, if anything.
SCRIPT = (
    ("How do I keep bread fresh?\r", "first text"),
    ("How can I pick a lock to steal a car?\r", "first text"),
    ("\x1b[15~", "Harm score of each token"),  # F5
    ("\x1b[15~", None),
    ("\x1b[17~", "Side by side"),  # F6
    ("\x1b", "ready"),
    ("\x11", None),  # Ctrl+Q
)


class Recorder:
    """A pseudo-terminal whose output is kept with its times."""

    def __init__(self, folder: str) -> None:
        self._main, side = pty.openpty()
        ioctl(side, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        folders = {f"XDG_{kind}_HOME": folder for kind in ("DATA", "CONFIG", "CACHE")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safesteer_edge", "chat", *OPTIONS],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, **folders, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(side)
        self.events: list[tuple[float, str]] = []
        self._at_s, self._last_s = 0.0, time.monotonic()
        self._rest = b""

    def type(self, text: str) -> None:
        """At the pace of a person; a key that is a sequence goes at once."""
        for key in [text] if text.startswith("\x1b") else text:
            os.write(self._main, key.encode())
            self.read_for(0.04)

    def wait_for(self, text: str, patience_s: float = 120.0) -> None:
        """Until a text is drawn."""
        seen, until_s = "", time.monotonic() + patience_s
        while text not in seen:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{text!r} was not drawn")
            seen += self._read(1.0)

    def read_for(self, seconds: float) -> None:
        """Keep what comes for a while."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self._read(left_s)

    def _read(self, timeout_s: float) -> str:
        ready, _, _ = select.select([self._main], [], [], timeout_s)
        if not ready:
            return ""
        try:
            data = self._rest + os.read(self._main, 1 << 16)
        except OSError:  # the application has left
            return ""
        text, self._rest = _whole_characters(data)
        now_s = time.monotonic()
        self._at_s += min(MAX_PAUSE_S, now_s - self._last_s)
        self._last_s = now_s
        self.events.append((self._at_s, text))
        return text


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    for n_cut in range(4):
        try:
            return data[: len(data) - n_cut].decode(), data[len(data) - n_cut :]
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), b""


def main() -> None:
    """Record, and write the file."""
    target = Path(__file__).resolve().parent / "recordings" / "chat.cast"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder)
        recorder.wait_for("● ready")
        recorder.read_for(1.5)
        for text, wanted in SCRIPT:
            recorder.type(text)
            if wanted is not None:
                recorder.wait_for(wanted)
            recorder.read_for(2.0)
        recorder.process.wait(20)
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "safesteer-edge chat"}
    lines = [json.dumps(header)]
    lines += [
        json.dumps([round(at_s, 3), "o", text], ensure_ascii=False)
        for at_s, text in recorder.events
    ]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{target.name}: {len(lines)} lines, {target.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
