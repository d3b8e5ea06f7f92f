"""The parent's side of an engine process: start it, talk to it, and tell how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from safesteer_edge.errors import EngineDiedError, EngineError, SafeSteerError, kinds_by_name
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import load_json
from safesteer_edge.processes.child import Child, ProcessDeath

# -- what crosses the pipe between a session and its engine process: JSON lines, both ways ---------
# Requests are objects with `do`; replies have one of `ready`, `beat`, `done`, `error` or `event`.
# Whoever reads bounds the length of a line and checks every field.

# A conversation of a long context, escaped, is far below it.
MAX_LINE_BYTES: Final = 64 << 20
_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
# The errors that may cross: ours, by name. Anything else becomes an EngineError.
_ERRORS: Final = kinds_by_name()


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
_MAX_QUOTED: Final = 200


class EngineProcess(Child):
    """One child. One thread sends and receives; `send_now` may be called from any."""

    def __init__(self) -> None:
        """Start it. Raises EngineError if that fails."""
        names, prefixes = _ENVIRONMENT_NAMES.split(), tuple(_ENVIRONMENT_PREFIXES.split())
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.upper() in names or name.upper().startswith(prefixes)
        }
        try:
            super().__init__(
                "safesteer_edge.session.engine_server:serve",
                environment=environment,
                log_filter=strip_control_characters,
            )
        except OSError as error:
            raise EngineError(
                f"cannot start {sys.executable!r} for the engine: {error.strerror or error}; free "
                "some memory, or run with --no-isolate"
            ) from error
        self._send_lock = threading.Lock()
        self._urgent: deque[bytes] = deque()

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
        while True:
            try:
                with self.within(_SILENCE_LIMIT_S):
                    line = self.stdout.readline(MAX_LINE_BYTES)
                    if not line.endswith(b"\n"):
                        raise EOFError
                reply = decode(line)
            except TimeoutError:
                self.kill()
                raise EngineDiedError(
                    f"the engine process gave no sign of life for {_SILENCE_LIMIT_S:.0f} s and was "
                    "ended; ask again to restart it, with a smaller model or --ctx if memory is "
                    "low"
                ) from None
            except EOFError as error:
                raise self._died() from error
            except ValueError as error:
                raise self.end_for(error) from error
            if "beat" not in reply:
                return reply

    def end_for(self, error: Exception) -> EngineDiedError:
        """End it for a reply that cannot be understood, and return what to raise."""
        self.kill()
        return EngineDiedError(
            f"the engine process said what cannot be understood ({error}), and was ended; ask "
            "again to restart it"
        )

    def close(self, limit_s: float = _CLOSE_LIMIT_S) -> None:
        """Let it free the model and end; kill it if it does not. Idempotent."""
        if self.is_alive:
            with contextlib.suppress(EngineDiedError):
                self.send({"do": "close"})
        super().close(limit_s)

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
                view = view[os.write(self.stdin.fileno(), view) :]
        except (OSError, ValueError) as error:  # ValueError: the pipe is closed
            raise self._died() from error

    def _died(self) -> EngineDiedError:
        return EngineDiedError(_death_sentence(self.death(), self.log))


def _death_sentence(death: ProcessDeath, log: Sequence[str]) -> str:
    advice = "ask again to restart it"
    if death.cause == "killed":
        why = "which is what the system does when memory runs out"
        advice += "; use a smaller model or --ctx if it happens again"
    elif death.cause == "exit":
        why = "before its work was done"
        advice += "; 'safesteer-edge doctor' looks for the cause"
    else:
        why = "a crash in native code"
        advice += "; 'safesteer-edge doctor' looks for the cause"
    return f"the engine process ended with {death.how}, {why}{_assertion(log)}; {advice}"


def _assertion(log: Sequence[str]) -> str:
    """What native code said when it aborted, if it did."""
    for line in reversed(log):
        if "GGML_ASSERT" in line or "terminate called" in line or "what():" in line:
            return f" ({line[:_MAX_QUOTED]!r})"
    return ""
