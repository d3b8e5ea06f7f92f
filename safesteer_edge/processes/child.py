"""Child processes that are asked one thing after another, and may hang, die or babble meanwhile.

Whoever asks reads and writes the pipes himself. A thread stands by to kill the child when that
takes too long, which ends both: Windows cannot wait on a pipe with a time limit. (A program that
is asked only once needs no more than `subprocess.run`.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

DeathCause = Literal["illegal instruction", "crash", "killed", "exit"]

_MAX_LOG_LINES: Final = 200
_MAX_LOG_LINE_BYTES: Final = 2048
_MAX_HEADER_BYTES: Final = 1 << 16
# What an interpreter needs from its surroundings to start, and the time zone; nothing else is
# passed on to a confined one.
_ENVIRONMENT_KEPT: Final = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
# NTSTATUS codes that Windows gives as exit codes.
_WINDOWS_CAUSES: Final[Mapping[int, tuple[DeathCause, str]]] = {
    0xC000001D: ("illegal instruction", "STATUS_ILLEGAL_INSTRUCTION"),
    0xC0000005: ("crash", "STATUS_ACCESS_VIOLATION"),
    0xC0000409: ("crash", "STATUS_STACK_BUFFER_OVERRUN"),
}
_SIGNAL_CAUSES: Final[Mapping[str, DeathCause]] = {
    "SIGILL": "illegal instruction",
    "SIGKILL": "killed",
    "SIGTERM": "killed",
}
_logger = logging.getLogger("safesteer_edge.child")


@dataclass(frozen=True, slots=True)
class ProcessDeath:
    """how: for people, a signal's name or an exit code."""

    cause: DeathCause
    how: str


def death_of(returncode: int) -> ProcessDeath:
    """What a return code of `subprocess` says, of either system."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return ProcessDeath(_SIGNAL_CAUSES.get(name, "crash"), name)
    known = _WINDOWS_CAUSES.get(returncode & 0xFFFFFFFF)
    return ProcessDeath(*known) if known else ProcessDeath("exit", f"exit code {returncode}")


class Child:
    """One child, asked by one thread. It ends when its stdin does, so it outlives no parent."""

    def __init__(
        self,
        serve: str,
        options: Mapping[str, object] | None = None,
        *,
        environment: Mapping[str, str],
        import_paths: Sequence[str] | None = None,
        log_filter: Callable[[str], str] | None = None,
        **setup: object,
    ) -> None:
        """Start it, without waiting. Raises OSError.

        serve: 'module:function', called in the child as `child_main` says. import_paths: that it
        has beside Python's own library and nothing else; None: those of this process.
        log_filter: of what it prints, the last lines are kept in `log` as this gives them; None:
        it is lost.
        """
        is_bare = import_paths is not None
        # -I: no PYTHONPATH, no user site, no current folder; -S: no .pth files are run.
        flags = ["-I", "-S"] if is_bare else ["-I"]
        given = {
            **setup,
            "serve": serve,
            "options": options or {},
            "import_paths": sys.path if import_paths is None else import_paths,
            "is_bare": is_bare,
        }
        program = str(Path(__file__).with_name("child_main.py"))
        self._process = subprocess.Popen(
            [sys.executable, *flags, program, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log_filter else subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self.stdin = cast("IO[bytes]", self._process.stdin)
        self.stdout = cast("IO[bytes]", self._process.stdout)
        self.log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self._log_thread = threading.Thread(
            target=_keep_log, args=(self._process.stderr, self.log, log_filter), daemon=True
        )
        self._log_thread.start()
        self._alarm = _Alarm(self._process)
        weakref.finalize(self, self._alarm.end)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    @property
    def process_id(self) -> int:
        """Its own."""
        return self._process.pid

    @contextlib.contextmanager
    def within(self, limit_s: float) -> Iterator[None]:
        """Kill it if reading or writing takes longer.

        Raises TimeoutError then, and EOFError for any other exception inside: the child has ended,
        or said what it should not.
        """
        self._alarm.set(time.monotonic() + limit_s)
        try:
            yield
        except Exception as error:
            if self._alarm.has_rung:
                raise TimeoutError(f"no reply within {limit_s:g} s") from None
            raise EOFError(f"no reply ({error})") from error
        finally:
            self._alarm.set(math.inf)

    def death(self, limit_s: float = 3.0) -> ProcessDeath:
        """How it ended. It is waited for, and killed if it only closed its pipe."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
        self.kill()
        return death_of(self._process.returncode)

    def close(self, limit_s: float = 0.5) -> None:
        """Close its stdin for it to end, and kill it if it does not. Safe to call twice."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
        self.kill()

    def kill(self) -> None:
        """End it at once. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._log_thread.join(1.0)
        self._alarm.end()
        for pipe in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class ConfinedChild(Child):
    """A child that works on hostile input, and has no means to do harm with it.

    It has an environment and import paths of its own, little memory, and opens no file. Each
    request is a JSON object and some bytes, and so is each reply.
    """

    def __init__(
        self,
        serve: str,
        options: Mapping[str, object],
        *,
        packages: Sequence[str],
        memory_bytes: int,
        max_reply_bytes: int,
        may_start_threads: bool = False,
    ) -> None:
        """Start it, without waiting. Raises OSError, ModuleNotFoundError.

        serve: makes of the options what answers requests: (header, payload) → the same. packages:
        what it imports besides this package. Its first reply says that it is ready.
        """
        super().__init__(
            serve,
            options,
            environment={k: os.environ[k] for k in _ENVIRONMENT_KEPT if k in os.environ},
            import_paths=_import_paths(packages),
            memory_bytes=memory_bytes,
            may_start_threads=may_start_threads,
        )
        self._max_reply_bytes = max_reply_bytes

    def send(self, header: Mapping[str, Any], payload: bytes = b"") -> None:
        """Hand it a request before it is ready: what a pipe does not hold waits until then.

        Whatever goes wrong, `receive` tells.
        """
        with contextlib.suppress(OSError):
            self._write(header, payload)

    def receive(self, limit_s: float) -> tuple[dict[str, Any], bytes]:
        """Its next reply. Raises TimeoutError, and EOFError if none will come; it is dead then."""
        with self._in_time(limit_s):
            return self._read()

    def ask(
        self, header: Mapping[str, Any], payload: bytes = b"", *, limit_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """Its reply to a request; errors as in `receive`."""
        with self._in_time(limit_s):
            self._write(header, payload)
            return self._read()

    @contextlib.contextmanager
    def _in_time(self, limit_s: float) -> Iterator[None]:
        try:
            with self.within(limit_s):
                yield
        except BaseException:  # Ctrl-C too: a late reply would pass for the next request's
            self.kill()
            raise

    def _write(self, header: Mapping[str, Any], payload: bytes) -> None:
        line = json.dumps({**header, "n_bytes": len(payload)}).encode("ascii") + b"\n"
        self.stdin.write(line + payload)
        self.stdin.flush()

    def _read(self) -> tuple[dict[str, Any], bytes]:
        header = cast("dict[str, Any]", json.loads(self.stdout.readline(_MAX_HEADER_BYTES)))
        n_bytes = int(header.pop("n_bytes"))
        if n_bytes > self._max_reply_bytes:
            raise ValueError(f"a reply of {n_bytes} bytes")
        payload = self.stdout.read(n_bytes)
        if len(payload) != n_bytes:
            raise ValueError(f"{len(payload)} of {n_bytes} bytes")
        return header, payload


class _Alarm:
    """Kills a process at a point in time, unless that is put off."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._changed = threading.Condition()
        self._at_s = self._looks_at_s = math.inf
        self._is_over = False
        self.has_rung = False
        threading.Thread(target=self._watch, name="child-alarm", daemon=True).start()

    def set(self, at_s: float) -> None:
        """Kill at this time of `time.monotonic`, infinity for never."""
        with self._changed:
            self._at_s = at_s
            # Set twice for each token: to wake the thread each time would cost more than that.
            if at_s < self._looks_at_s:
                self._changed.notify()

    def end(self) -> None:
        """Kill now, whoever forgot to close it, and watch no more."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_over and (left_s := self._at_s - time.monotonic()) > 0:
                left_s = min(left_s, threading.TIMEOUT_MAX)
                self._looks_at_s = time.monotonic() + left_s
                self._changed.wait(left_s)
            self.has_rung = not self._is_over
        self._process.kill()
        self._process.wait()


def _keep_log(
    stream: IO[bytes] | None, log: deque[str], log_filter: Callable[[str], str] | None
) -> None:
    """Read what the child prints, so that it never blocks; keep the end of it."""
    if stream is None or log_filter is None:
        return
    with stream:
        while line := stream.readline(_MAX_LOG_LINE_BYTES):
            if text := log_filter(line.decode("utf-8", "replace").rstrip()):
                log.append(text)
                _logger.debug("%s", text)


def _import_paths(packages: Sequence[str]) -> list[str]:
    """The folders that hold this package and those, importing nothing."""
    paths = [str(Path(__file__).resolve().parents[2])]
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package!r} is not installed; reinstall safesteer-edge")
        origin = Path(spec.origin).resolve()
        is_package = spec.submodule_search_locations is not None
        paths.append(str(origin.parents[1] if is_package else origin.parent))
    return list(dict.fromkeys(paths))
