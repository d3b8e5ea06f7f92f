"""The engine's process. Run as a file, never imported.

argv[1]: the parent's sys.path as JSON. It takes requests from stdin and replies on what was its
stdout; fd 1 itself then leads to stderr, so that nothing native can print into the replies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys


def _own_reply_pipe() -> int:
    """The pipe to the parent under a number that no native code knows."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def _dump_no_core() -> None:
    """A core file of a model's size helps nobody, and takes a minute to write."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def main() -> None:
    """Serve the parent until it closes the pipe."""
    replies = _own_reply_pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which cancels
    faulthandler.enable()  # a crash leaves its Python stack in the log
    _dump_no_core()
    sys.path[:] = json.loads(sys.argv[1])
    from safesteer_edge.session.engine_server import EngineServer

    EngineServer(sys.stdin.buffer, replies).serve()


if __name__ == "__main__":
    main()
