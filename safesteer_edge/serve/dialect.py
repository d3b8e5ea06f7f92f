"""What a dialect is: how it asks, how it answers, whole and in a stream, and what went wrong."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from safesteer_edge.errors import (
    BundleError,
    EngineDiedError,
    InputError,
    ModelFileError,
    ProbeFileError,
    PromptTooLongError,
    SafeSteerError,
    VectorFileError,
)
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.serve.asked import Asked
from safesteer_edge.serve.served_model import Answered, BusyError, Piece

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an answer before its first word. fingerprint: of model and guard."""

    asked: Asked
    prefill: PrefillDone
    fingerprint: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def call_id(self, index: int) -> str:
        """The id of one call of a tool."""
        return f"call_{self.id}{index}"

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


# -- what went wrong, as a status and a body that the client's dialect has -------------------------

# Per status: OpenAI's and Anthropic's names.
_KINDS: Final = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("server_error", "overloaded_error"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """text: one line for people. code: of OpenAI's dialect."""

    status: int
    text: str
    code: str | None = None

    def body(self, path: str) -> dict[str, Any]:
        """As JSON, in the dialect that the path is of."""
        fallback = ("server_error", "api_error") if self.status >= 500 else _KINDS[400]
        openai, anthropic = _KINDS.get(self.status, fallback)
        if path.startswith("/api/"):
            return {"error": self.text}
        if path.startswith("/v1/messages"):
            return {"type": "error", "error": {"type": anthropic, "message": self.text}}
        error = {"message": self.text, "type": openai, "param": None, "code": self.code}
        return {"error": error}


class ProblemError(SafeSteerError):
    """Ends a request with a status of its own."""

    def __init__(self, status: int, text: str, code: str | None = None) -> None:
        super().__init__(text)
        self.problem = Problem(status, text, code)


def problem_of(error: Exception) -> Problem:
    """The status of an error, and what to say. A request is never answered without a guard."""
    text = strip_control_characters(" ".join(str(error).split()))
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, BusyError):
        return Problem(429, text, "queue_full")
    if isinstance(error, EngineDiedError):
        return Problem(503, text, "engine_died")
    # Files of the server that were good when it started.
    if isinstance(error, BundleError | ProbeFileError | VectorFileError | ModelFileError):
        return Problem(503, text, "guard_unavailable")
    if isinstance(error, PromptTooLongError):
        return Problem(400, text, "context_length_exceeded")
    if isinstance(error, InputError):
        return Problem(400, text)
    if isinstance(error, SafeSteerError):
        return Problem(500, text)
    return Problem(500, f"unexpected {type(error).__name__}; run the server with --verbose")
