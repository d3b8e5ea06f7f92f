"""The parent's side of the rendering child: start it, ask it, end it in time.

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
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from safesteer_edge.errors import TemplateError

# What an interpreter needs from its surroundings to start; nothing else is passed on.
_ENVIRONMENT_KEPT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
# Ends the message of every template error: what the user can do.
TEMPLATE_ADVICE = "choose a known-good one with --chat-template builtin:chatml"


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """What an untrusted template may use."""

    render_s: float = 5.0  # wall-clock time of one render
    start_s: float = 30.0  # of starting the child: a cold disk or a virus scanner may be slow
    memory_bytes: int = 512 << 20
    source_chars: int = 256 << 10
    output_chars: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """The template failed on these messages, and may take others (`raise_exception`, mostly)."""

    message: str


class TemplateProcess:
    """One child process that renders one template. Not thread-safe."""

    def __init__(self, load_request: dict[str, Any], *, name: str, limits: TemplateLimits) -> None:
        """Start the child and hand it the template, without waiting for either.

        name: for messages, e.g. the file that the template is from.
        """
        self._name = name
        self._limits = limits
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_loaded = False
        self._process = _start(limits)
        # JSON writes a character as up to two six-byte escapes.
        max_reply = 12 * limits.output_chars + 4096
        thread = threading.Thread(
            target=_exchange,
            args=(self._process, self._requests, self._replies, max_reply),
            name="chat-template",
            daemon=True,
        )
        thread.start()
        self._end = weakref.finalize(self, self._requests.put, None)
        self._requests.put(_encode(load_request))

    def request(self, request: dict[str, Any]) -> str | Refusal:
        """Return the rendered text, or the template's refusal.

        Raises TemplateError if the template is broken or breaks a limit; the process may be dead
        then (`is_alive`). May take start_s + 2 render_s the first time, render_s later.
        """
        try:
            if not self._is_loaded:
                self._load()
            self._requests.put(_encode(request))
            reply = self._receive(self._limits.render_s, "render")
        except BaseException:  # Ctrl-C too: a late reply would pass for the next request's
            self._kill()
            raise
        return self._text_of(reply)

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

    def _load(self) -> None:
        started = self._receive(self._limits.start_s, "start")
        self._text_of(started if "kind" in started else {"text": ""})
        self._text_of(self._receive(self._limits.render_s, "compile"))
        self._is_loaded = True

    def _receive(self, limit_s: float, doing: str) -> dict[str, Any]:
        started_s = time.monotonic()
        try:
            line = self._replies.get(timeout=limit_s)
        except queue.Empty:
            raise TemplateError(
                f"chat template of {self._name!r} took more than {limit_s:g} s to {doing}; "
                f"{TEMPLATE_ADVICE}"
            ) from None
        if line.endswith(b"\n"):
            return cast("dict[str, Any]", json.loads(line))
        elapsed_s = time.monotonic() - started_s
        raise TemplateError(
            f"chat template of {self._name!r} ended its process after {elapsed_s:.1f} s "
            f"(it wanted too much time or memory, more than {self._limits.memory_bytes >> 20} MiB);"
            f" {TEMPLATE_ADVICE}"
        )

    def _text_of(self, reply: dict[str, Any]) -> str | Refusal:
        if "text" in reply:
            return str(reply["text"])
        if reply["kind"] == "refused":
            return Refusal(str(reply["message"]))
        raise TemplateError(
            f"chat template of {self._name!r} cannot be used: {reply['message']!r}; "
            f"{TEMPLATE_ADVICE}"
        )


def _start(limits: TemplateLimits) -> subprocess.Popen[bytes]:
    options = {
        "import_paths": _import_paths(),
        "memory_bytes": limits.memory_bytes,
        "render_s": limits.render_s,
    }
    worker = Path(__file__).with_name("template_worker.py")
    # -I: no PYTHONPATH, no user site, no current folder; -S: no .pth files are run.
    command = [sys.executable, "-I", "-S", str(worker), json.dumps(options)]
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
        raise TemplateError(
            f"cannot start {sys.executable!r} to render the chat template: {error}"
        ) from error


def _import_paths() -> list[str]:
    """Return the folders that hold jinja2, markupsafe and this package, importing nothing."""
    paths = [str(Path(__file__).resolve().parents[2])]
    for package in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise TemplateError(f"{package!r} is not installed; run 'pip install jinja2'")
        paths.append(str(Path(spec.origin).resolve().parents[1]))
    return paths


def _encode(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode("ascii") + b"\n"


def _exchange(
    process: subprocess.Popen[bytes],
    requests: queue.SimpleQueue[bytes | None],
    replies: queue.SimpleQueue[bytes],
    max_reply: int,
) -> None:
    """Carry requests and replies until told to stop (None) or the child ends. Owns the pipes.

    A reply without a line end is the last: the child ended, or said more than max_reply bytes.
    """
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    try:
        line = stdout.readline(max_reply)
        replies.put(line)
        while line.endswith(b"\n") and (request := requests.get()) is not None:
            stdin.write(request)
            stdin.flush()
            line = stdout.readline(max_reply)
            replies.put(line)
    except OSError:  # the child died while it was written to
        replies.put(b"")
    finally:
        for pipe in (stdin, stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()
