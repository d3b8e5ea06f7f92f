"""The child's side of a confined process: what it gives up before it touches hostile input."""

from __future__ import annotations

import contextlib

try:
    import resource
except ImportError:  # Windows
    resource = None


def limit_resources(memory_bytes: int, *, threads: bool = False) -> None:
    """Allow no more memory than that, no new file or socket, no file growth, no new process.

    threads: may be started; no limit tells them from processes. A second fence behind the checks of
    the code itself, where the system has such limits (macOS ignores RLIMIT_AS). Whatever is
    imported late must be loaded before.
    """
    if resource is None:
        return
    limits = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_NOFILE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    if threads:
        del limits["RLIMIT_NPROC"]
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))
