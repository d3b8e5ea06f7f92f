"""What is piped into a command, and how it goes together with the words that were typed."""

from __future__ import annotations

import os
import queue
import stat
import sys
import threading
from collections.abc import Sequence
from typing import Final

from safesteer_edge.cli.options import say
from safesteer_edge.errors import InputError

_MAX_BYTES: Final = 4 << 20  # far more than any context holds
# A parent may hold a pipe open that it never writes to: a question need not wait for its end.
_FIRST_BYTE_LIMIT_S: Final = 5.0


def read_prompt(words: Sequence[str]) -> str:
    """The question: the words, below what is piped in; `-` or no words: what is piped in alone.

    Raises InputError if there is neither.
    """
    if list(words) not in ([], ["-"]):
        question = " ".join(words)
        context = _text(_piped_bytes())
        return f"{context}\n\n{question}" if context else question
    if sys.stdin is None or (not words and sys.stdin.isatty()):
        raise InputError(
            "there is no question; write it behind 'ask', or pipe it in: cat question.txt | "
            "safesteer-edge ask"
        )
    prompt = _text(sys.stdin.buffer.read(_MAX_BYTES + 1))
    if not prompt:
        raise InputError("there is no question: stdin is empty; write it behind 'ask'")
    return prompt


def _piped_bytes() -> bytes:
    """All that stands in the pipe or file that is stdin; nothing if it is something else."""
    try:
        fd = sys.stdin.fileno()
        mode = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):  # there is no stdin, or none of the system's
        return b""
    if stat.S_ISREG(mode):
        return sys.stdin.buffer.read(_MAX_BYTES + 1)
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return b""
    first: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # A thread, because Windows cannot wait on a pipe with a time limit.
    threading.Thread(target=lambda: first.put(os.read(fd, 1 << 16)), daemon=True).start()
    try:
        data = first.get(timeout=_FIRST_BYTE_LIMIT_S)
    except queue.Empty:
        say(
            f"safesteer-edge: nothing came from stdin in {_FIRST_BYTE_LIMIT_S:.0f} s, so the "
            "question is asked without it; '< /dev/null' spares the wait"
        )
        return b""
    while len(data) <= _MAX_BYTES and (more := data and os.read(fd, 1 << 16)):
        data += more
    return data


def _text(data: bytes) -> str:
    if len(data) > _MAX_BYTES:
        raise InputError(f"stdin has more than {_MAX_BYTES >> 20} MiB; send a part of it")
    try:
        return data.decode("utf-8").rstrip("\r\n")  # as a shell's $(…): the line's end is not said
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the prompt from stdin: {error}; send UTF-8 text") from error
