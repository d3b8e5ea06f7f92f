"""What crosses the pipe between a session and its engine process: JSON lines, both ways.

Requests are objects with `do`; replies have one of `ready`, `beat`, `done`, `error` or `event`.
Whoever reads bounds the length of a line and checks every field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from safesteer_edge import errors
from safesteer_edge.errors import EngineError, SafeSteerError
from safesteer_edge.formats.finite_json import load_finite

# A conversation of a long context, escaped, is far below it.
MAX_LINE_BYTES: Final = 64 << 20
_encoder: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
# The errors that may cross: ours, by name. Anything else becomes an EngineError.
_ERRORS: Final[Mapping[str, type[SafeSteerError]]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, SafeSteerError)
}


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line. Raises ValueError for a NaN or an infinity in it."""
    return _encoder.encode(message).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises ValueError for anything else."""
    message = load_finite(line)
    if not isinstance(message, dict):
        raise ValueError(f"expected an object, got {line[:80]!r}")
    return cast("dict[str, Any]", message)


def error_to_json(error: Exception) -> dict[str, str]:
    """An error's kind and text."""
    kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _ERRORS), None)
    if kind is not None:
        return {"kind": kind, "text": str(error)}
    text = (
        f"unexpected {type(error).__name__} in the engine process: {error}; run again with "
        "--verbose and report what it prints"
    )
    return {"kind": EngineError.__name__, "text": text}


def error_from_json(value: Mapping[str, object]) -> SafeSteerError:
    """The error that `error_to_json` wrote, of the same class with the same text."""
    kind = _ERRORS.get(str(value.get("kind")), EngineError)
    return kind(str(value.get("text")))
