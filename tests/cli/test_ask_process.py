"""`safesteer-edge ask` as a process: Ctrl-C, pipes that close, and nothing on the wrong stream."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safesteer_edge.cli.options import BAD_INPUT, INTERRUPTED, OK, RUNTIME_ERROR
from tests.cli.conftest import TIMEOUT_S, StartAsk, ask_arguments
from tests.guarded_tiny import QUIET, GuardedTiny
from tests.session.turns import texts

# A second or two of decoding: long enough for a signal to come before the end.
N_LONG = 1800
LONG = ("--ctx", "2048", "--max-tokens", str(N_LONG))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")


@pytest.fixture(scope="module")
def long_answer(guarded_tiny: GuardedTiny) -> str:
    """What the tiny model would say if nobody stopped it."""
    bundle = guarded_tiny.bundle(QUIET)
    return texts(guarded_tiny, bundle, ["Hello there"], n_ctx=2048, max_tokens=N_LONG)[0]


@pytest.mark.parametrize(
    ("whole_group", "more"),
    [(True, ()), (False, ()), (True, ("--no-isolate",))],
    ids=["terminal", "kill", "one-process"],
)
def test_ctrl_c_prints_what_was_said_and_exits_130(
    start_ask: StartAsk, tmp_path: Path, long_answer: str, whole_group: bool, more: tuple[str, ...]
):
    trace = tmp_path / "trace.jsonl"
    # A terminal sends the signal to every process of the group: the template's child as well.
    running = start_ask("Hello there", *LONG, *more, "--trace", str(trace), start_new_session=True)
    said = running.stdout.read(1)
    if whole_group:
        os.killpg(running.process.pid, signal.SIGINT)
    else:
        running.process.send_signal(signal.SIGINT)
    out, err = running.finish()
    text = (said + out).decode()
    assert running.process.returncode == INTERRUPTED
    assert text.endswith("\n")
    assert long_answer.startswith(text.removesuffix("\n"))
    assert 1 <= len(text.rstrip("\n")) < len(long_answer)
    assert b"Traceback" not in err
    assert err.rstrip().endswith(b"stopped]")
    rows = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert "".join(row["text"] for row in rows).startswith(text.removesuffix("\n"))


def test_ctrl_c_with_json_prints_the_whole_object(
    start_ask: StartAsk, tmp_path: Path, long_answer: str
):
    trace = tmp_path / "trace.jsonl"
    running = start_ask("Hello there", *LONG, "--json", "--trace", str(trace))
    _wait_for_lines(trace, running.process, 5)
    running.process.send_signal(signal.SIGINT)
    out, _ = running.finish()
    value = json.loads(out)
    assert running.process.returncode == INTERRUPTED
    assert value["finish_reason"] == "cancelled"
    assert value["text"]
    assert long_answer.startswith(value["text"])
    n_rows = len(trace.read_text(encoding="utf-8").splitlines())
    assert value["usage"]["completion_tokens"] == n_rows


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("crash", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_of_llama_cpp_is_one_line_and_exit_code_1(
    start_ask: StartAsk, tmp_path: Path, crash: signal.Signals
):
    trace = tmp_path / "trace.jsonl"
    running = start_ask("Hello there", *LONG, "--quiet", "--trace", str(trace))
    _wait_for_lines(trace, running.process, 5)
    process_id = running.process.pid
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    os.kill(int(children[0]), crash)
    _, err = running.finish()
    assert running.process.returncode == RUNTIME_ERROR
    assert err.startswith(b"safesteer-edge: the engine process")
    assert err.count(b"\n") == 1


def test_a_trace_is_readable_while_the_answer_goes_on(start_ask: StartAsk, tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    running = start_ask("Hello there", *LONG, "--trace", str(trace))
    _wait_for_lines(trace, running.process, 20)
    running.process.kill()
    running.finish()
    for line in trace.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may be cut by the kill, and by nothing else
            assert json.loads(line)["step"]


def _wait_for_lines(trace: Path, process: subprocess.Popen[bytes], n_lines: int) -> None:
    """Return once the trace has so many lines; fails if the process ends before that."""
    while not trace.exists() or trace.read_bytes().count(b"\n") < n_lines:
        assert process.poll() is None, "the answer ended before it was seen to begin"
        time.sleep(0.001)


_IN_A_CALLBACK = """
class Interrupting(logging.Handler):
    def emit(self, record):  # on the way out of llama.cpp's callback
        signal.raise_signal(signal.SIGINT)

logger = logging.getLogger("safesteer_edge.native")
logger.setLevel(logging.DEBUG)
logger.addHandler(Interrupting())
"""
_WAITING_FOR_THE_ENGINE = """
from safesteer_edge.session.engine_process import EngineProcess

def receive(process, receive=EngineProcess.receive):
    os.killpg(0, signal.SIGINT)
    return receive(process)

EngineProcess.receive = receive
"""


@pytest.mark.parametrize(
    ("more", "interrupting"),
    [(("--no-isolate",), _IN_A_CALLBACK), ((), _WAITING_FOR_THE_ENGINE)],
    ids=["one-process", "isolated"],
)
def test_ctrl_c_while_the_model_loads_exits_130(
    guarded_tiny: GuardedTiny, more: tuple[str, ...], interrupting: str
):
    asked = ask_arguments(guarded_tiny, "Hello there", bundle=guarded_tiny.bundle(QUIET))
    program = f"""
import logging, os, signal, sys
from safesteer_edge.cli.main import main
{interrupting}
sys.exit(main({[*asked, *more]!r}))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        timeout=TIMEOUT_S,
    )
    assert (ran.returncode, ran.stdout) == (INTERRUPTED, b"")
    assert ran.stderr == b"safesteer-edge: interrupted\n"


@pytest.mark.parametrize("arguments", [LONG, ("--json",)], ids=["streaming", "json"])
def test_a_reader_that_has_gone_is_no_error(start_ask: StartAsk, arguments: tuple[str, ...]):
    running = start_ask("Hello there", *arguments, "--quiet")
    running.stdout.close()
    _, err = running.finish()
    assert (running.process.returncode, err) == (OK, b"")


@pytest.mark.skipif(shutil.which("head") is None, reason="needs head")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_an_answer_that_nobody_can_get_is_an_error(
    guarded_tiny: GuardedTiny, redirection: str, option: str
):
    bundle = guarded_tiny.bundle(QUIET)
    command = [sys.executable, "-m", "safesteer_edge"]
    command += ask_arguments(guarded_tiny, "Hello", "--quiet", option, bundle=bundle)
    program = f"{shlex.join(command)} {redirection}"
    ran = subprocess.run(program, shell=True, stderr=subprocess.PIPE, text=True)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("safesteer-edge: cannot write to stdout: ")
    assert ran.returncode == RUNTIME_ERROR


def test_head_gets_its_byte(start_ask: StartAsk, long_answer: str):
    running = start_ask("Hello there", *LONG, "--quiet")
    head = subprocess.run(
        ["head", "-c", "1"], stdin=running.stdout, capture_output=True, timeout=TIMEOUT_S
    )
    running.stdout.close()
    _, err = running.finish()
    assert head.stdout.decode() == long_answer[0]
    assert err == b""


ACCENTED = "Grüße – 你好"
# fmt: off
NOT_TEXT = {
    "cp1252": "naïve café".encode("cp1252"),
    "utf-16 without its mark": "Hello".encode("utf-16-le"),
    "half of utf-16": "Hello".encode("utf-16")[:-1],
    "utf-32": "Hello".encode("utf-32"),
    "binary": b"\x7fELF\x02\x01\x01\x00",
}
# fmt: on


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_stdin_and_stdout_are_text_in_any_locale(
    start_ask: StartAsk, guarded_tiny: GuardedTiny, encoding: str, locale: str
):
    running = start_ask("-", "--quiet", stdin=subprocess.PIPE, environment={"LC_ALL": locale})
    out, err = running.finish(f"{ACCENTED}\r\n".encode(encoding))
    assert running.process.returncode == OK, err
    expected = texts(guarded_tiny, guarded_tiny.bundle(QUIET), [ACCENTED])[0]
    assert out.decode() == f"{expected}\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("kind", NOT_TEXT)
def test_bytes_that_are_no_text_are_not_asked(start_ask: StartAsk, kind: str, locale: str):
    for words in ([], ["Hello"]):
        running = start_ask(*words, stdin=subprocess.PIPE, environment={"LC_ALL": locale})
        out, err = running.finish(NOT_TEXT[kind])
        assert (running.process.returncode, out) == (BAD_INPUT, b"")
        (line,) = err.splitlines()
        assert b"send UTF-8" in line


@pytest.mark.parametrize("arguments", [["caf\udce9"], ["Hello", "--system", "caf\udce9"]])
def test_an_argument_that_is_no_text_is_not_asked(start_ask: StartAsk, arguments: list[str]):
    running = start_ask(*arguments)
    out, err = running.finish()
    assert (running.process.returncode, out) == (BAD_INPUT, b"")
    assert err.count(b"\n") == 1
    assert b"not UTF-8 text" in err


@pytest.mark.parametrize("words", [["Hello", "there"], ["Hello", "--seed", "1", "there"]])
def test_what_is_piped_in_stands_above_the_question(
    start_ask: StartAsk, guarded_tiny: GuardedTiny, words: list[str]
):
    running = start_ask(*words, "--quiet", stdin=subprocess.PIPE)
    out, err = running.finish(b"one\ntwo\n")
    assert (running.process.returncode, err) == (OK, b"")
    asked = "one\ntwo\n\nHello there"
    expected = texts(guarded_tiny, guarded_tiny.bundle(QUIET), [asked])[0]
    assert out.decode() == f"{expected}\n"


def test_what_is_piped_in_is_the_question_where_none_is_written(
    start_ask: StartAsk, guarded_tiny: GuardedTiny, tmp_path: Path
):
    expected = texts(guarded_tiny, guarded_tiny.bundle(QUIET), ["Hello there"])[0]
    piped = start_ask("--quiet", stdin=subprocess.PIPE)
    assert piped.finish(b"Hello there\n")[0].decode() == f"{expected}\n"
    file = tmp_path / "question.txt"
    file.write_bytes(b"Hello there\n")
    with file.open("rb") as stream:
        redirected = start_ask("--quiet", stdin=stream.fileno())
        assert redirected.finish()[0].decode() == f"{expected}\n"


@pytest.mark.parametrize("kind", ["null", "zeros", "empty pipe", "open pipe", "closed"])
def test_a_question_needs_nothing_of_stdin(
    start_ask: StartAsk, guarded_tiny: GuardedTiny, kind: str
):
    bundle = guarded_tiny.bundle(QUIET)
    expected = texts(guarded_tiny, bundle, ["Hello there"])[0]
    arguments = ("Hello there", "--quiet")
    if kind == "closed":
        whole = [
            sys.executable,
            "-m",
            "safesteer_edge",
            *ask_arguments(guarded_tiny, *arguments, bundle=bundle),
        ]
        shell = subprocess.run(
            ["sh", "-c", 'exec "$@" <&-', "sh", *whole], capture_output=True, timeout=TIMEOUT_S
        )
        assert (shell.returncode, shell.stdout.decode()) == (OK, f"{expected}\n"), shell.stderr
        return
    with Path("/dev/zero").open("rb") as zeros:
        stdin = {"null": subprocess.DEVNULL, "zeros": zeros.fileno()}.get(kind, subprocess.PIPE)
        running = start_ask(*arguments, stdin=stdin)
    if kind == "open pipe":
        said = b""
        while not said.endswith(b"\n"):  # and only then is the pipe closed
            said += running.stdout.read(1)
        _, err = running.finish()
        assert (said.decode(), running.process.returncode) == (f"{expected}\n", OK)
        assert b"asking without it" in err
        return
    out, err = running.finish()
    assert (out.decode(), err, running.process.returncode) == (f"{expected}\n", b"", OK)


def test_a_stream_without_end_is_no_question(start_ask: StartAsk):
    with Path("/dev/zero").open("rb") as zeros:
        running = start_ask("-", stdin=zeros.fileno())
    out, err = running.finish()
    assert (running.process.returncode, out) == (BAD_INPUT, b"")
    assert err.count(b"\n") == 1


def test_the_log_goes_to_stderr_and_only_where_asked_for(
    start_ask: StartAsk, guarded_tiny: GuardedTiny
):
    quiet = start_ask("Hello there", "--quiet")
    out, err = quiet.finish()
    assert err == b""
    command = [sys.executable, "-m", "safesteer_edge", "--verbose", *quiet.arguments]
    verbose = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S)
    assert verbose.returncode == OK
    assert verbose.stdout == out
    assert b"safesteer_edge.native" in verbose.stderr
    assert verbose.stderr.count(b"\n") > 20


def test_the_installed_command_is_the_same_program(guarded_tiny: GuardedTiny, start_ask: StartAsk):
    command = Path(sys.executable).with_name("safesteer-edge")
    if not command.exists():
        pytest.skip("the package is not installed as a command beside this Python")
    running = start_ask("Hello there", "--quiet")
    out, _ = running.finish()
    installed = subprocess.run(
        [str(command), *running.arguments], capture_output=True, timeout=TIMEOUT_S
    )
    assert (installed.returncode, installed.stdout, installed.stderr) == (OK, out, b"")
