"""What is piped into a command, and how it goes together with the words that were typed."""

from __future__ import annotations

import codecs
import io
import os
import queue
import re
import stat
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Final, TextIO

from safesteer_edge.cli.options import say
from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import plain_reason

_MAX_BYTES: Final = 4 << 20  # far more than any context holds
_MAX_PICTURE_BYTES: Final = 64 << 20  # the decoder's own limit is lower, and is told
# A parent may hold a pipe open that it never writes to: a question need not wait for its end.
_FIRST_BYTE_LIMIT_S: Final = 5.0
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BINARY: Final = re.compile("[\x00-\x06\x0e-\x1a\x1c-\x1f]")  # terminals do send BEL, BS, ESC


def read_prompt(words: Sequence[str], *, is_stdin_taken: bool = False) -> str:
    """The question: the words, below what is piped in; `-` or no words: what is piped in alone.

    is_stdin_taken: a picture is piped in. Raises InputError if there is neither.
    """
    if list(words) not in ([], ["-"]):
        question = " ".join(words)
        require_text(question, "the question")
        context = "" if is_stdin_taken else _text(_piped_bytes())
        return f"{context}\n\n{question}" if context else question
    if is_stdin_taken:
        raise InputError("stdin is the picture; write the question behind 'ask'")
    if sys.stdin is None or (not words and sys.stdin.isatty()):
        raise InputError(
            "there is no question; write it after 'ask', or pipe it in: cat question.txt | "
            "safesteer-edge ask"
        )
    prompt = _text(sys.stdin.buffer.read(_MAX_BYTES + 1))
    if not prompt:
        raise InputError("there is no question: stdin is empty; write it after 'ask'")
    return prompt


def read_piped_picture() -> bytes:
    """The bytes of a picture file that is piped in. Raises InputError if there are none."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("there is no picture on stdin; pipe it in: … | safesteer-edge ask -i -")
    data = sys.stdin.buffer.read(_MAX_PICTURE_BYTES)
    if not data:
        raise InputError("there is no picture on stdin: it is empty; pipe one in")
    return data


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
            f"safesteer-edge: nothing was piped in within {_FIRST_BYTE_LIMIT_S:.0f} s; asking "
            "without it (add '< /dev/null' to avoid the wait)"
        )
        return b""
    while len(data) <= _MAX_BYTES and (more := data and os.read(fd, 1 << 16)):
        data += more
    return data


def _text(data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, whatever the locale is. Raises InputError."""
    if len(data) > _MAX_BYTES:
        raise InputError(f"stdin has more than {_MAX_BYTES >> 20} MiB; send only a part of it")
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise _not_text(plain_reason(error)) from error
    if _BINARY.search(text):
        raise _not_text("it is binary")
    # Of coloured logs the words alone; and as a shell's $(…) has it, no line's end at the end.
    return strip_control_characters(text).rstrip("\n")


def _encoding(start: bytes) -> str:
    """The encoding of text that begins so. Both drop their mark."""
    return "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"


def _not_text(why: object) -> InputError:
    return InputError(f"stdin is not text: {why}; send UTF-8, or UTF-16 with a byte order mark")


def require_text(typed: str | None, what: str) -> None:
    """Raise InputError for an argument whose bytes are no text in this locale."""
    try:
        (typed or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not UTF-8 text: {typed!r}; write it in UTF-8") from error


class PipedLines:
    """The lines of stdin as text, as a chat reads them: from a terminal, or decoded as `_text`."""

    def isatty(self) -> bool:
        """Whether a person types them."""
        return sys.stdin is not None and sys.stdin.isatty()

    def readline(self) -> str:
        """The next line, '' at the end. Raises InputError."""
        if sys.stdin is None:
            return ""
        try:
            line = self._lines.readline()
        except UnicodeError as error:
            raise _not_text(plain_reason(error)) from error
        if _BINARY.search(line):
            raise _not_text("it is binary")
        return line

    @cached_property
    def _lines(self) -> TextIO:
        """Made when the first line is wanted: only then does anything have to be there."""
        if isinstance(sys.stdin, io.TextIOWrapper) and isinstance(
            sys.stdin.buffer, io.BufferedReader
        ):
            encoding = _encoding(sys.stdin.buffer.peek(2))
            sys.stdin.reconfigure(encoding=encoding, errors="strict")
        return sys.stdin
