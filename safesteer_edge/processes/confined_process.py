"""The parent's side of a child that works on hostile input: start it, ask it, end it in time.

Works with pipes and one thread, because Windows cannot wait on a pipe with a time limit.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast

Reply = TypeVar("Reply")

# What an interpreter needs from its surroundings to start, and the time zone; nothing else is
# passed on.
_ENVIRONMENT_KEPT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


class ConfinedProcess(Generic[Reply]):
    """One child that answers requests, one after another. Not thread-safe."""

    def __init__(
        self,
        worker: Path,
        options: Mapping[str, object],
        *,
        packages: Sequence[str],
        read_reply: Callable[[IO[bytes]], Reply | None],
    ) -> None:
        """Start the child, without waiting for it.

        worker: a file that is run with `options` and `import_paths` as JSON in argv[1]; it says
        something when it is ready, answers each request on stdin, and ends when stdin does.
        packages: what it imports besides this package.
        read_reply: waits for one reply; None: the child ended or said what it should not. It must
        not hold the object that owns this one, which could then never be collected.
        Raises OSError, or ModuleNotFoundError for a package that is not installed.
        """
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._process = _start(worker, {**options, "import_paths": _import_paths(packages)})
        threading.Thread(
            target=_exchange,
            args=(self._process, self._requests, self._replies, read_reply),
            name=worker.stem,
            daemon=True,
        ).start()
        self._end = weakref.finalize(self, self._requests.put, None)

    def send(self, request: bytes) -> None:
        """Hand it a request, without waiting."""
        self._requests.put(request)

    def receive(self, limit_s: float) -> Reply | None:
        """Its next reply; None: it ended, or said what it should not.

        Raises TimeoutError. Whoever stops waiting must `kill` it: a late reply would pass for the
        next request's.
        """
        try:
            return self._replies.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"no reply within {limit_s:g} s") from None

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
        self.kill()

    def kill(self) -> None:
        """End it at once. Safe to call twice."""
        self._process.kill()
        self._end()
        self._process.wait()


def _start(worker: Path, options: Mapping[str, object]) -> subprocess.Popen[bytes]:
    # -I: no PYTHONPATH, no user site, no current folder; -S: no .pth files are run.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(worker), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={key: os.environ[key] for key in _ENVIRONMENT_KEPT if key in os.environ},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


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


def _exchange(
    process: subprocess.Popen[bytes],
    requests: queue.SimpleQueue[bytes | None],
    replies: queue.SimpleQueue[Any],
    read_reply: Callable[[IO[bytes]], object],
) -> None:
    """Carry requests and replies until told to stop (None) or the child ends. Owns the pipes."""
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    try:
        reply = read_reply(stdout)
        replies.put(reply)
        while reply is not None and (request := requests.get()) is not None:
            stdin.write(request)
            stdin.flush()
            reply = read_reply(stdout)
            replies.put(reply)
    except Exception:  # it died while it was written to, or said what nobody can read
        replies.put(None)
    finally:
        for pipe in (stdin, stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()
