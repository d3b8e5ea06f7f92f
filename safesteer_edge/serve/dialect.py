"""What a dialect is: how it asks, how it answers, whole and in a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.serve.asked import Asked
from safesteer_edge.serve.served_model import Answered, Piece

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an answer before its first word."""

    asked: Asked
    prefill: PrefillDone
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def trace(self, answered: Answered) -> Json:
        """What goes into the answer of a request that asked for a trace; else nothing."""
        return {"safesteer": answered.trace()} if self.asked.guard.trace else {}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way to ask for an answer.

    read: Raises BadValueError. stream: the answer's chunks. frame: a chunk as bytes. ending: bytes
    behind the last one. failed: the chunk for what went wrong after the first word.
    """

    read: Callable[[object], Asked]
    whole: Callable[[Head, Answered], Json]
    stream: Callable[[Head, AsyncIterator[Piece]], AsyncIterator[Json]]
    frame: Callable[[Json], bytes]
    failed: Callable[[Json], Json] = lambda error: error
    ending: bytes = b""
    media_type: str = "text/event-stream"


def compact(value: Mapping[str, Any]) -> bytes:
    """One line of JSON, in ASCII: some clients take U+2028 for the end of a line.

    Raises ValueError for a NaN.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def sse(chunk: Json) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + compact(chunk) + b"\n\n"


def named_sse(chunk: Json) -> bytes:
    """A server-sent event that is called as its type."""
    return b"event: " + chunk["type"].encode() + b"\n" + sse(chunk)
