"""The parent's side of an engine process: start it, talk to it, and tell how it ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

from safesteer_edge import errors
from safesteer_edge.errors import EngineDiedError, EngineError, SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.processes.cores import spin_briefly
from safesteer_edge.processes.process_death import ProcessDeath, death_of

# -- what crosses the pipe between a session and its engine process: JSON lines, both ways ---------
# Requests are objects with `do`; replies have one of `ready`, `beat`, `done`, `error` or `event`.
# Whoever reads bounds the length of a line and checks every field.

# A conversation of a long context, escaped, is far below it.
MAX_LINE_BYTES: Final = 64 << 20
_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
# The errors that may cross: ours, by name. Anything else becomes an EngineError.
_ERRORS: Final[Mapping[str, type[SafeSteerError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SafeSteerError)
}


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line. Raises ValueError for a NaN or an infinity in it."""
    return _encoder.encode(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises ValueError for anything else."""
    message = load_json(line)
    if not isinstance(message, dict):
        raise ValueError(f"expected an object, got {line[:80]!r}")
    return cast("dict[str, Any]", message)


def error_to_json(error: Exception) -> dict[str, str]:
    """An error's kind and text."""
    kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _ERRORS), None)
    if kind is not None:
        return {"kind": kind, "text": str(error)}
    text = (
        f"unexpected {type(error).__name__} in the engine process: {error}; run again with "
        "--verbose and report what it prints"
    )
    return {"kind": EngineError.__name__, "text": text}


def error_from_json(value: Mapping[str, object]) -> SafeSteerError:
    """The error that `error_to_json` wrote, of the same class with the same text."""
    kind = _ERRORS.get(str(value.get("kind")), EngineError)
    return kind(str(value.get("text")))


# What the engine and its drivers look for around them. A process that runs native code on
# downloaded files gets nothing else: no tokens, no keys.
_ENVIRONMENT_NAMES: Final = """
HOME PATH LANG TZ TMPDIR TEMP TMP USERPROFILE APPDATA LOCALAPPDATA SYSTEMROOT SYSTEMDRIVE
LD_LIBRARY_PATH LD_PRELOAD DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH
"""
_ENVIRONMENT_PREFIXES: Final = """
LC_ XDG_ CUDA NVIDIA_ GGML_ LLAMA_ OMP_ KMP_ GOMP_ OPENBLAS_ MKL_ VK_ HIP_ HSA_ ROCR_ ROCM_ SYCL_
ONEAPI_ ORT_ METAL_
"""
# Its beats come every two seconds, so this long without a word it is frozen or swapped out.
_SILENCE_LIMIT_S: Final = 60.0
_CLOSE_LIMIT_S: Final = 3.0
_MAX_LOG_LINES: Final = 200
_MAX_LOG_LINE_BYTES: Final = 2048
_MAX_QUOTED: Final = 200
_logger = logging.getLogger("safesteer_edge.engine_process")


class EngineProcess:
    """One child. One thread sends and receives; `send_now` may be called from any."""

    def __init__(self) -> None:
        """Start it. Raises EngineError if that fails."""
        self._process = _start()
        self._requests = cast("IO[bytes]", self._process.stdin)
        self._replies = cast("IO[bytes]", self._process.stdout)
        self._send_lock = threading.Lock()
        self._urgent: deque[bytes] = deque()
        self._waiting_since_s: float | None = None
        self._is_frozen = False
        self._log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self._log_thread = threading.Thread(
            target=_keep_log, args=(self._process.stderr, self._log), name="engine-log", daemon=True
        )
        self._log_thread.start()
        threading.Thread(
            target=_watch, args=(weakref.ref(self),), name="engine-watch", daemon=True
        ).start()

    @property
    def process_id(self) -> int:
        """The child's."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be talked to."""
        return self._process.poll() is None

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines that it, or native code in it, wrote to stdout or stderr."""
        return tuple(self._log)

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request. Raises EngineDiedError."""
        with self._send_lock:
            self._write(encode(request))
        self._send_urgent()

    def send_now(self, request: Mapping[str, Any]) -> None:
        """Send a short request from any thread or a signal handler, and never wait for a lock."""
        self._urgent.append(encode(request))
        self._send_urgent()

    def receive(self) -> dict[str, Any]:
        """The next reply. Raises EngineDiedError if none will come."""
        self._waiting_since_s = time.monotonic()
        try:
            while True:
                line = self._replies.readline(MAX_LINE_BYTES)
                if not line.endswith(b"\n"):
                    raise self._death()
                reply = decode(line)
                if "beat" not in reply:
                    return reply
                self._waiting_since_s = time.monotonic()
        except ValueError as error:
            raise self.end_for(error) from error
        finally:
            self._waiting_since_s = None

    def end_for(self, error: Exception) -> EngineDiedError:
        """End it for a reply that cannot be understood, and return what to raise."""
        self.kill()
        return EngineDiedError(
            f"the engine process said what cannot be understood ({error}), and was ended; ask "
            "again to start it anew"
        )

    def close(self) -> None:
        """Let it free the model and end; kill it if it does not. Idempotent."""
        if self._process.poll() is None:
            with contextlib.suppress(EngineDiedError):
                self.send({"do": "close"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_LIMIT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._log_thread.join(1.0)
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()

    def end_if_silent(self) -> None:
        """End it if it is waited for and has given no sign of life."""
        waiting_since_s = self._waiting_since_s
        if waiting_since_s is not None and time.monotonic() - waiting_since_s > _SILENCE_LIMIT_S:
            self._is_frozen = True
            self._process.kill()

    # -- private ----------------------------------------------------------------------------------

    def _send_urgent(self) -> None:
        # Whoever holds the lock sends what was added meanwhile, after letting go of it.
        while self._urgent and self._send_lock.acquire(blocking=False):
            try:
                with contextlib.suppress(EngineDiedError, IndexError):
                    self._write(self._urgent.popleft())
            finally:
                self._send_lock.release()

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._requests.fileno(), view) :]
        except (OSError, ValueError) as error:  # ValueError: the pipe is closed
            raise self._death() from error

    def _death(self) -> EngineDiedError:
        """How it ended. It is waited for, and killed if it only closed its pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_LIMIT_S)
        self.kill()
        if self._is_frozen:
            return EngineDiedError(
                f"the engine process gave no sign of life for {_SILENCE_LIMIT_S:.0f} s and was "
                "ended; ask again to start it anew, with a smaller model or --ctx if memory is low"
            )
        return EngineDiedError(_death_sentence(death_of(self._process.returncode), self.log))


def _start() -> subprocess.Popen[bytes]:
    # -I: no current folder and no PYTHON* variables; the parent's sys.path is passed on.
    child = str(Path(__file__).with_name("engine_child.py"))
    command = [sys.executable, "-I", child, json.dumps(sys.path)]
    names, prefixes = _ENVIRONMENT_NAMES.split(), tuple(_ENVIRONMENT_PREFIXES.split())
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in names or name.upper().startswith(prefixes)
    }
    spin_briefly(environment)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise EngineError(
            f"cannot start {sys.executable!r} for the engine: {error.strerror or error}; free some "
            "memory, or run without --isolate"
        ) from error


def _keep_log(stream: IO[bytes] | None, log: deque[str]) -> None:
    """Read what the child prints, so that it never blocks; keep the end of it."""
    if stream is None:
        return
    with stream:
        while line := stream.readline(_MAX_LOG_LINE_BYTES):
            text = strip_control_characters(line.decode("utf-8", "replace").rstrip())
            if text:
                log.append(text)
                _logger.debug("%s", text)


def _watch(process: weakref.ref[EngineProcess]) -> None:
    """End a child that is frozen, so that whoever waits for it is told. Ends with its object."""
    pause = threading.Event()
    while (alive := process()) is not None and alive.is_alive:
        alive.end_if_silent()
        del alive
        pause.wait(2.0)


def _death_sentence(death: ProcessDeath, log: tuple[str, ...]) -> str:
    advice = "ask again to start it anew"
    if death.cause == "killed":
        why = "which is what the system does when memory runs out"
        advice += ", with a smaller model or --ctx if it happens again"
    elif death.cause == "exit":
        why = "before its work was done"
        advice += "; 'safesteer-edge doctor' looks for the cause"
    else:
        why = "a crash in native code"
        advice += "; 'safesteer-edge doctor' looks for the cause"
    return f"the engine process ended with {death.how}, {why}{_assertion(log)}; {advice}"


def _assertion(log: tuple[str, ...]) -> str:
    """What native code said when it aborted, if it did."""
    for line in reversed(log):
        if "GGML_ASSERT" in line or "terminate called" in line or "what():" in line:
            return f" ({line[:_MAX_QUOTED]!r})"
    return ""
