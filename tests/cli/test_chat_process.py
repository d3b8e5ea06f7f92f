"""`safesteer-edge chat` as a process that reads lines from a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safesteer_edge.cli.options import BAD_INPUT, OK
from tests.cli.conftest import TIMEOUT_S, Ran, ask_arguments
from tests.guarded_tiny import QUIET, GuardedTiny
from tests.session.turns import texts


@pytest.fixture
def chat(guarded_tiny: GuardedTiny, tmp_path: Path):
    """Chat with the tiny model; stdin: what is piped in. Chats are kept in a folder of the test."""

    def run(*arguments: str, stdin: bytes = b"", **environment: str) -> Ran:
        whole = ask_arguments(guarded_tiny, *arguments, bundle=guarded_tiny.bundle(QUIET))[1:]
        ran = subprocess.run(
            [sys.executable, "-m", "safesteer_edge", "chat", *whole],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path), **environment},
        )
        return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())

    return run


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_are_text_in_any_locale(chat, guarded_tiny: GuardedTiny, encoding: str):
    ran = chat("--no-save", stdin="Grüße – 你好\r\n".encode(encoding), LC_ALL="C")
    expected = texts(guarded_tiny, guarded_tiny.bundle(QUIET), ["Grüße – 你好"])[0]
    assert (ran.exit_code, ran.out) == (OK, f"{expected}\n"), ran.err


@pytest.mark.parametrize("data", ["naïve café\n".encode("cp1252"), b"\x7fELF\0\n"])
def test_lines_that_are_no_text_are_not_asked(chat, data: bytes):
    ran = chat("--no-save", stdin=data, LC_ALL="C")
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    assert "send UTF-8" in ran.err.splitlines()[-1]


def test_a_question_of_the_command_line_is_asked_first(chat, guarded_tiny: GuardedTiny):
    ran = chat("Hello", "there", "--no-save")
    expected = texts(guarded_tiny, guarded_tiny.bundle(QUIET), ["Hello there"])[0]
    assert (ran.exit_code, ran.out) == (OK, f"{expected}\n")


def test_a_saved_chat_goes_on(chat, tmp_path: Path):
    none = chat("-c")
    assert (none.exit_code, none.out) == (BAD_INPUT, "")
    first = chat("Hello there")
    (file,) = tmp_path.glob("safesteer-edge/chats/*.jsonl")
    for how in (["-c"], ["--resume", file.stem]):
        n_lines = file.read_text("utf-8").count("\n")
        on = chat(*how, "And then?")
        assert on.exit_code == OK
        assert "you asked: " in on.err
        assert on.out.count("\n") >= first.out.count("\n") + 1  # what was said, and what is new
        assert file.read_text("utf-8").count("\n") > n_lines
    assert len([*tmp_path.glob("safesteer-edge/chats/*.jsonl")]) == 1
    assert chat("--no-save", "-c").exit_code == BAD_INPUT


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_that_can_move_no_cursor_gets_the_chat_of_lines(guarded_tiny: GuardedTiny):
    import pty

    main_side, side = pty.openpty()
    whole = ask_arguments(guarded_tiny, "--no-save", bundle=guarded_tiny.bundle(QUIET))[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "safesteer_edge", "chat", *whole],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(side)
    os.write(main_side, b"/quit\n")
    assert process.wait(TIMEOUT_S) == OK
    shown = os.read(main_side, 1 << 16)
    os.close(main_side)
    assert b"/help lists commands" in shown
    assert b"\x1b" not in shown
