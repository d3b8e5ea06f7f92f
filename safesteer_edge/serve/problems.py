"""What went wrong, as a status and a body that the client's dialect has."""

from __future__ import annotations

from dataclasses import dataclass
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
from safesteer_edge.serve.served_model import BusyError

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
