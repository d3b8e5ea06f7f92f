"""The parent's side of the decoding process: start it, hand it a file, end it in time.

Works with pipes and a thread, because Windows cannot wait on a pipe with a time limit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import MediaKind

# What an interpreter needs from its surroundings to start; nothing else is passed on.
_ENVIRONMENT_KEPT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_PACKAGES = {"image": ("PIL",), "sound": ("miniaudio", "_miniaudio", "_cffi_backend")}
_MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What one file may use of the decoding process. max_answer_bytes: of pixels or samples."""

    decode_s: float
    start_s: float = 30.0  # a cold disk or a virus scanner may be slow
    memory_bytes: int = 960 << 20
    max_answer_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class DecoderAnswer:
    """What the decoder said of a file, and its pixels or samples."""

    header: dict[str, Any]
    payload: bytes


class DecoderProcess:
    """One child process that decodes files of one kind, one after another. Not thread-safe."""

    def __init__(self, kind: MediaKind, limits: DecoderLimits) -> None:
        """Start the child, without waiting for it. Raises MediaError if it cannot be started."""
        self._kind = kind
        self._limits = limits
        self._is_ready = False
        self._requests: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[DecoderAnswer | None] = queue.SimpleQueue()
        self._process = _start(kind, limits)
        threading.Thread(
            target=_exchange,
            args=(self._process, self._requests, self._answers, limits.max_answer_bytes),
            name=f"{kind}-decoder",
            daemon=True,
        ).start()
        self._end = weakref.finalize(self, self._requests.put, None)

    def decode(self, request: dict[str, Any], data: bytes) -> DecoderAnswer:
        """Decode one file. request: with `name`, for messages.

        Raises MediaError that says what is wrong with it, or that it broke a limit; the process may
        be dead then (`is_alive`).
        """
        try:
            if not self._is_ready:
                self._wait_for_start()
            line = json.dumps({**request, "n_bytes": len(data)}).encode("ascii") + b"\n"
            self._requests.put((line, data))
            answer = self._wait_for_answer(f"{self._kind} {request['name']}")
        except BaseException:  # Ctrl-C too: a late answer would pass for the next file's
            self._kill()
            raise
        if "error" in answer.header:
            raise MediaError(str(answer.header["error"]))
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether the child can be asked again."""
        return self._process.poll() is None and self._end.alive

    @property
    def process_id(self) -> int:
        """The child's."""
        return self._process.pid

    def close(self) -> None:
        """Ask the child to end, and kill it if it does not. Safe to call twice."""
        self._end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
            return
        self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._end()
        self._process.wait()

    def _wait_for_start(self) -> None:
        try:
            self._is_ready = self._answers.get(timeout=self._limits.start_s) is not None
        except queue.Empty:
            self._is_ready = False
        if not self._is_ready:
            raise MediaError(
                f"the process that decodes {self._kind}s does not start; reinstall safesteer-edge"
            )

    def _wait_for_answer(self, file: str) -> DecoderAnswer:
        limits = self._limits
        try:
            answer = self._answers.get(timeout=limits.decode_s)
        except queue.Empty:
            raise MediaError(
                f"{file} takes more than {limits.decode_s:g} s to decode; make it smaller, or save "
                "it in another format"
            ) from None
        if answer is None:
            raise MediaError(
                f"{file} ended the process that decoded it: it is damaged, or needs more than "
                f"{limits.memory_bytes >> 20} MiB; save it in another format"
            )
        return answer


def _start(kind: MediaKind, limits: DecoderLimits) -> subprocess.Popen[bytes]:
    options = {"import_paths": _import_paths(kind), "memory_bytes": limits.memory_bytes}
    worker = Path(__file__).with_name("decoder_worker.py")
    # -I: no PYTHONPATH, no user site, no current folder; -S: no .pth files are run.
    command = [sys.executable, "-I", "-S", str(worker), json.dumps(options), kind]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: os.environ[key] for key in _ENVIRONMENT_KEPT if key in os.environ},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise MediaError(f"cannot start {sys.executable!r} to decode {kind}s: {error}") from error


def _import_paths(kind: MediaKind) -> list[str]:
    """The folders that hold this package and the decoder's, importing nothing."""
    paths = [str(Path(__file__).resolve().parents[2])]
    for package in _PACKAGES[kind]:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise MediaError(f"{package!r} is not installed; reinstall safesteer-edge")
        origin = Path(spec.origin).resolve()
        is_package = spec.submodule_search_locations is not None
        paths.append(str(origin.parents[1] if is_package else origin.parent))
    return list(dict.fromkeys(paths))


def _exchange(
    process: subprocess.Popen[bytes],
    requests: queue.SimpleQueue[tuple[bytes, bytes] | None],
    answers: queue.SimpleQueue[DecoderAnswer | None],
    max_bytes: int,
) -> None:
    """Carry files and answers until told to stop (None) or the child ends. Owns the pipes."""
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    try:
        answer = _read_answer(stdout, max_bytes)
        answers.put(answer)
        while answer is not None and (request := requests.get()) is not None:
            stdin.write(request[0])
            stdin.write(request[1])
            stdin.flush()
            answer = _read_answer(stdout, max_bytes)
            answers.put(answer)
    except OSError:  # the child died while it was written to
        answers.put(None)
    finally:
        for pipe in (stdin, stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()


def _read_answer(stdout: IO[bytes], max_bytes: int) -> DecoderAnswer | None:
    """None: the child ended, or did not say what it should."""
    line = stdout.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    header = cast("dict[str, Any]", json.loads(line))
    n_bytes = int(header["n_bytes"])
    if n_bytes > max_bytes:
        return None
    payload = stdout.read(n_bytes)
    return DecoderAnswer(header, payload) if len(payload) == n_bytes else None
