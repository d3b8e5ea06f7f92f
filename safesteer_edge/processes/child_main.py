"""What every child process of `child.Child` runs first. Run as a file, never imported.

argv[1] is a JSON object: serve ('module:function'), its options, import_paths, is_bare. The
function is called with the options, stdin, and the file descriptor that replies are written to.
With memory_bytes and may_start_threads the child is a confined one: the function is given the
options alone, and returns what answers each request.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None

Answer = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def limit_resource(name: str, value: int, *, is_hard: bool = True) -> None:
    """Allow no more of it, where the system has such a limit (macOS ignores RLIMIT_AS)."""
    if resource is not None:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            hard = value if is_hard else resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (value, hard))


def limit_resources(memory_bytes: int, *, may_start_threads: bool) -> None:
    """Allow no more memory than that, no new file or socket, no file growth, no new process.

    may_start_threads: no limit tells them from processes. A second fence behind the checks of the
    code itself. Whatever is imported late must be loaded before.
    """
    limit_resource("RLIMIT_AS", memory_bytes)
    for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE"):
        limit_resource(name, 0)
    if not may_start_threads:
        limit_resource("RLIMIT_NPROC", 0)


def answer_requests(answer: Answer, replies_fd: int) -> None:
    """Answer one request after another until stdin ends. Both are a line of JSON, and bytes."""
    requests, header, payload = sys.stdin.buffer, {}, b""
    with os.fdopen(replies_fd, "wb") as replies:
        while True:
            line = json.dumps({**header, "n_bytes": len(payload)}).encode("ascii")
            replies.write(line + b"\n" + payload)
            replies.flush()
            del payload  # before the next one is read
            if not (line := requests.readline()):
                break
            request = json.loads(line)
            header, payload = answer(request, requests.read(request["n_bytes"]))


def main() -> None:
    """Serve the parent until it closes the pipe."""
    # Its own number, which no native code knows: nothing can print into the replies.
    replies_fd = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which cancels
    # A core file of a model's size helps nobody, and takes a minute to write.
    limit_resource("RLIMIT_CORE", 0, is_hard=False)
    given = json.loads(sys.argv[1])
    sys.path[:] = [*(sys.path if given["is_bare"] else ()), *given["import_paths"]]
    module, _, name = given["serve"].partition(":")
    serve = getattr(importlib.import_module(module), name)
    if "memory_bytes" not in given:
        serve(given["options"], sys.stdin.buffer, replies_fd)
        return
    answer = serve(given["options"])
    limit_resources(given["memory_bytes"], may_start_threads=given["may_start_threads"])
    answer_requests(answer, replies_fd)


if __name__ == "__main__":
    main()
