"""Nothing leaves the machine: no command reaches for a network, or leaves files of somebody else.

Each runs below `socket_watch`, with an empty home folder and an environment without the variables
of a build server, where ONNX Runtime's telemetry is off by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safesteer_edge.media.typographic import TextStyle, render_text
from tests.cli.test_calibrate import COUNTS, LOOSE, write_requests
from tests.e2e.socket_watch import UNSUPPORTED
from tests.guarded_tiny import QUIET, GuardedTiny

_LIMIT_S = 240.0
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "OMP_WAIT_POLICY")
_OURS = tuple(f"home/{where}/safesteer-edge/" for where in (".cache", ".config", ".local/share"))
_MACHINE = ("--threads", "1", "--ctx", "512")
_COMMAND = (sys.executable, "-m", "safesteer_edge")
# What the guard did before its telemetry was off: a session of somebody else's that stays open.
_WITH_TELEMETRY = """
import sys, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print("open", flush=True)
sys.stdin.read()
"""
# Below Python, in a grandchild.
_LOOK_UP = """
import ctypes, subprocess, sys
look_up = "import ctypes; ctypes.CDLL(None).getaddrinfo(b'example.com', b'80', None, b'%8c' % 0)"
subprocess.run([sys.executable, "-c", look_up], check=True)
"""


@dataclass(frozen=True, slots=True)
class Watch:
    """A folder in which commands are run and watched."""

    folder: Path

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command, its streams in pipes."""
        for name in ("home", "tmp", "here"):
            (self.folder / name).mkdir(exist_ok=True)
        folders = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        watch = Path(__file__).with_name("socket_watch.py")
        return subprocess.Popen(
            [sys.executable, str(watch), str(self.folder / "calls"), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder / "here",
            env={**kept, **folders, "CUDA_CACHE_DISABLE": "1"},  # or NVIDIA's driver keeps one
        )

    def run(self, *command: str) -> tuple[int, str, str]:
        """Run a command to its end: exit code, stdout, stderr."""
        with self.start(*command) as process:
            out, err = process.communicate(timeout=_LIMIT_S)
        return process.returncode, out, err

    @property
    def calls(self) -> list[str]:
        """The calls that would have led to a network, and whose they were."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def foreign_files(self) -> list[str]:
        """The files that are there now and are none of ours."""
        names = [
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "calls"
        ]
        return [name for name in names if not name.startswith(_OURS)]


@pytest.fixture(scope="module", autouse=True)
def system_can_watch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where there is no such filter: other systems, and some containers."""
    exit_code, _, err = Watch(tmp_path_factory.mktemp("watch")).run(sys.executable, "-c", "")
    if exit_code == UNSUPPORTED:
        pytest.skip(err.strip())


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    (tmp_path / "watched").mkdir()
    return Watch(tmp_path / "watched")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture with words in it, which the guard reads."""
    path = tmp_path_factory.mktemp("page") / "page.png"
    style = TextStyle(width=56, height=56, margin=3, max_size=20, min_size=12)
    Image.fromarray(render_text("Paint it", style).pixels).save(path)
    return str(path)


def guarded(tiny: GuardedTiny) -> Sequence[str]:
    return ("--model", str(tiny.model), "--bundle", str(tiny.bundle(QUIET)), "--max-tokens", "8")


def test_a_look_up_in_native_code_of_a_grandchild_is_seen(watch: Watch):
    assert watch.run(sys.executable, "-c", _LOOK_UP)[0] == 0
    assert any("getaddrinfo" in call for call in watch.calls)


@pytest.mark.parametrize("where", [(), ("--isolate",)], ids=["here", "isolated"])
def test_ask_with_a_picture_leaves_nothing(
    watch: Watch, guarded_tiny: GuardedTiny, page: str, where: tuple[str, ...]
):
    seeing = ("--mmproj", str(guarded_tiny.projector), "--image", page)
    ended = watch.run(*_COMMAND, "ask", "Hello", *guarded(guarded_tiny), *_MACHINE, *seeing, *where)
    assert ended[0] == 0, ended
    assert (watch.calls, watch.foreign_files) == ([], [])


def test_a_chat_leaves_nothing_while_plain_onnxruntime_looks_up_a_host(
    watch: Watch, guarded_tiny: GuardedTiny, tmp_path: Path
):
    plain = Watch(tmp_path)
    probe = str(guarded_tiny.bundle(QUIET) / "probe.onnx")
    with (
        plain.start(sys.executable, "-c", _WITH_TELEMETRY, probe) as session,
        watch.start(*_COMMAND, "chat", "--plain", *guarded(guarded_tiny), *_MACHINE) as chat,
    ):
        assert session.stdout and chat.stdin and chat.stdout
        chat.stdin.write("Hello\n")
        chat.stdin.flush()
        assert session.stdout.readline() == "open\n"
        assert chat.stdout.read(1)
        has_telemetry = bool(plain.foreign_files)
        deadline = time.monotonic() + _LIMIT_S
        while has_telemetry and not plain.calls and time.monotonic() < deadline:
            time.sleep(0.1)
        _, err = chat.communicate(timeout=_LIMIT_S)
    assert chat.returncode == 0, err
    assert (watch.calls, watch.foreign_files) == ([], [])
    if not has_telemetry:
        pytest.skip("the chat leaves nothing, but this ONNX Runtime has no telemetry to compare to")
    assert any(name.endswith("/deviceid") for name in plain.foreign_files)
    assert plain.calls


def test_doctor_leaves_nothing_and_says_so(watch: Watch):
    _, out, _ = watch.run(*_COMMAND, "doctor")
    assert "ok    nothing phones home: checked" in out
    assert (watch.calls, watch.foreign_files) == ([], [])


def test_calibrate_leaves_nothing(watch: Watch, guarded_tiny: GuardedTiny, tmp_path: Path):
    data = write_requests(tmp_path / "requests.jsonl", COUNTS)
    options = ("-o", str(tmp_path / "guard"), "--data", str(data), "--workers", "1", *LOOSE)
    ended = watch.run(*_COMMAND, "calibrate", str(guarded_tiny.model), *options, *_MACHINE)
    assert ended[0] == 0, ended
    assert (watch.calls, watch.foreign_files) == ([], [])


def test_convert_leaves_nothing(watch: Watch, guarded_tiny: GuardedTiny, tmp_path: Path):
    np.savez(tmp_path / "mine.npz", w=guarded_tiny.weights[:64], b=np.zeros(1))
    output = ("-o", str(tmp_path / "probe.onnx"), "--model", str(guarded_tiny.model))
    source = str(tmp_path / "mine.npz")
    ended = watch.run(*_COMMAND, "convert", "probe", source, *output, "--layer", "1")
    assert ended[0] == 0, ended
    assert (watch.calls, watch.foreign_files) == ([], [])


def test_who_imported_onnxruntime_first_is_told(watch: Watch):
    program = (
        "import onnxruntime\n"
        "from safesteer_edge.processes.native_libraries import import_onnxruntime\n"
        "assert import_onnxruntime() is import_onnxruntime() is onnxruntime\n"
    )
    exit_code, _, err = watch.run(sys.executable, "-c", program)
    assert exit_code == 0, err
    assert err.count("RuntimeWarning: onnxruntime was imported before ORT_DISABLE_TELEMETRY=1") == 1
