"""The application in a pseudo-terminal, on the embedded model, as a person has it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pyte
import pytest

from tests.session.isolated.test_engine_death import is_running, wait_until

pytestmark = [
    pytest.mark.default_model,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals"),
]
_PATIENCE_S = 180.0
_OTHER_SCREEN, _MOUSE = 1049, 1000  # private modes of xterm
# One thread: two that wait for each other crawl where other programs want the cores.
_OPTIONS = ("--temperature", "0", "--threads", "1")
_SUM = "What is 2+2? Answer with the number alone."


class Terminal:
    """A terminal of 80×24 with the application in it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._main, side = pty.openpty()
        ioctl(side, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        folders = {f"XDG_{kind}_HOME": str(folder) for kind in ("DATA", "CONFIG", "CACHE")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "safesteer_edge", "chat", *_OPTIONS],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, **folders, "TERM": "xterm-256color", **environment},
            start_new_session=True,
        )
        os.close(side)
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)

    def type(self, text: str) -> None:
        self.send(text.encode())

    def send(self, data: bytes) -> None:
        """What a terminal sends; it takes in what is drawn meanwhile."""
        while data:
            data = data[os.write(self._main, data[:1024]) :]
            self._read(0)

    def sees(self, *texts: str) -> None:
        """Wait until the screen shows all of these."""
        self.until(lambda: all(text in self.text() for text in texts), f"{texts}")

    def sees_answer_to(self, end: str) -> None:
        """Wait for the first words under the question that ends like this."""
        answer = re.compile(re.escape(end) + r"\s+▌\s+▌  \w+")
        self.until(lambda: bool(answer.search(self.text())), f"an answer to {end!r}")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}; the screen:\n{self.text()}")
            self._read(0.05)

    def text(self) -> str:
        return "\n".join(self._screen.display)

    def modes(self) -> set[int]:
        """The private modes that are on."""
        return {mode >> 5 for mode in self._screen.mode if mode >= 1 << 5}

    def vanish(self) -> None:
        """Go, and send no signal: the application has no controlling terminal."""
        os.close(self._main)
        self._main = -1

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._main >= 0:
            os.close(self._main)

    def _read(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self._main], [], [], timeout_s)
        if ready:
            try:
                self._stream.feed(os.read(self._main, 1 << 16))
            except OSError:  # the application has left
                time.sleep(timeout_s)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def engine_of(process_id: int) -> int:
    """The process id of the engine of an application."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(process_id)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in listed.stdout.splitlines() if "engine_server" in line]
    return int(lines[0].split()[0])


def test_a_person_chats_stops_an_answer_loses_the_engine_and_leaves(terminal: Terminal):
    terminal.sees("runs on your computer", "ready")
    # An answer, and its figures.
    terminal.type(f"{_SUM}\r")
    terminal.sees("2 + 2 = 4", "● ready", "tokens/s")
    # Stopped by Escape, kept and marked; the next one works.
    terminal.type("Tell me a very long story about a lighthouse.\r")
    terminal.sees_answer_to("lighthouse.")
    terminal.type("\x1b")
    terminal.sees("stopped by you")
    # The engine is killed in the middle of an answer: a sentence, and the chat goes on.
    # (No other story: after one that was broken off, the model may end the next at once.)
    terminal.type("Explain in great detail how a sailing ship is built.\r")
    terminal.sees_answer_to("ship is built.")
    os.kill(engine_of(terminal.process.pid), signal.SIGKILL)
    # Whether any of its text had been settled by then is a matter of speed.
    ends = ("The answer was interrupted", "Not answered")
    terminal.until(lambda: any(end in terminal.text() for end in ends), f"{ends}")
    terminal.type(f"{_SUM}\r")
    terminal.until(lambda: terminal.text().rstrip().count(_SUM) == 1, "the question")
    terminal.sees("● ready", "tokens/s")
    assert "2 + 2" in terminal.text()
    # Leaving gives the terminal back, at once.
    terminal.type("\x11")
    assert terminal.process.wait(_PATIENCE_S) == 0


def test_a_chat_whose_terminal_vanishes_is_saved_and_ends(terminal: Terminal, tmp_path: Path):
    terminal.sees("runs on your computer", "ready")
    terminal.type("Tell me a very long story about the wind.\r")
    terminal.sees_answer_to("the wind.")
    engine = engine_of(terminal.process.pid)
    terminal.vanish()
    assert terminal.process.wait(_PATIENCE_S) == 129
    lines = next(tmp_path.glob("safesteer-edge/chats/*.jsonl")).read_text("utf-8").splitlines()
    kept = [json.loads(line) for line in lines]
    assert any(each["type"] == "text" and each["text"] for each in kept)
    assert kept[-1]["type"] == "end"
    wait_until(lambda: not is_running(engine), f"engine {engine} to end")


def test_a_message_is_written_in_the_persons_own_editor(tmp_path: Path):
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf ' and the sky' >> \"$1\"\n")
    editor.chmod(0o700)
    terminal = Terminal(tmp_path, EDITOR=str(editor), VISUAL="")
    try:
        terminal.sees("runs on your computer", "ready")
        terminal.type("the sea")
        terminal.sees("│ the sea  ")
        terminal.type("\x07")  # Ctrl+G
        terminal.sees("│ the sea and the sky  ")
        terminal.type("\x18\x05")  # Ctrl+X Ctrl+E
        terminal.sees("│ the sea and the sky and the sky  ")
        assert terminal.modes() >= {_OTHER_SCREEN, _MOUSE}
        editor.write_text("#!/bin/sh\nexit 3\n")
        terminal.type("\x07")
        terminal.sees("failed", "│ the sea and the sky and the sky")
    finally:
        terminal.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_chat_leaves_the_terminal_as_it_was(
    terminal: Terminal, number: signal.Signals
):
    terminal.sees("runs on your computer")
    assert terminal.modes() >= {_OTHER_SCREEN, _MOUSE}
    terminal.process.send_signal(number)
    terminal.until(lambda: terminal.process.poll() is not None, f"an end by {number.name}")
    terminal.until(lambda: not terminal.modes() & {_OTHER_SCREEN, _MOUSE}, "the first screen")
    assert terminal.process.returncode == 128 + number


def test_a_coloured_paste_stands_in_the_input_and_sends_nothing(terminal: Terminal, tmp_path: Path):
    terminal.sees("runs on your computer", "ready")
    terminal.send(
        b"\x1b[200~my build fails with:\r\n\x1b[31merror\x1b[0m: no such file\r\nwhat can I do?"
        b"\x1b[201~"
    )
    lines = ["│ my build fails with:  ", "│ error: no such file  ", "│ what can I do?  "]
    terminal.sees(*lines)
    # What a text of a paste smuggles behind an end marker is not sent either.
    terminal.send(b"\x1b[200~ one\x1b[201~two\rthree\r\xff\x1b[201~")
    terminal.sees(*lines[:2], "│ what can I do? onetwo  ", "│ three  ", "│ \ufffd  ")
    assert "ready" in terminal.text()
    assert not list(tmp_path.glob("safesteer-edge/chats/*.jsonl"))


def test_a_paste_of_thousands_of_lines_is_counted_and_can_be_cut_down(
    terminal: Terminal, tmp_path: Path
):
    terminal.sees("runs on your computer", "ready")
    log = b"".join(b"\x1b[32mline %d\x1b[0m of a log\r" % number for number in range(5_000))
    terminal.send(b"\x1b[200~" + log + b"\x1b[201~")
    terminal.sees("│ [pasted 5,000 lines]", "Tab expands it")
    time.sleep(0.1)  # within 0.05 s an Enter is taken for the paste's own
    terminal.type("\r")
    terminal.sees("Too long to send", "The prompt has ", "Edit", "Discard")
    terminal.type("\r")
    terminal.sees("│ line 4999 of a log")
    assert not list(tmp_path.glob("safesteer-edge/chats/*.jsonl"))
