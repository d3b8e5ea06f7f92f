"""SafeSteer Edge: quantized multimodal models that stay safe while they decode.

The public names below are imported when they are first used, so that the package itself (and the
command line's `--help`) loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from safesteer_edge.formats.version import VERSION as __version__

if TYPE_CHECKING:
    from safesteer_edge.chats.chat_store import ChatStore
    from safesteer_edge.chats.recorded_chat import RecordedChat
    from safesteer_edge.errors import EngineDiedError, InputError, SafeSteerError
    from safesteer_edge.guard.events import (
        Event,
        MediaPrepared,
        PrefillDone,
        Refused,
        Step,
        TextDelta,
        TurnEnded,
        event_from_json,
        event_to_json,
    )
    from safesteer_edge.guard.policy import SamplingSettings
    from safesteer_edge.session.isolated_session import IsolatedSession, open_isolated_session
    from safesteer_edge.session.protocol import ChatMessage, SessionInfo, TurnSettings
    from safesteer_edge.session.session import Session, open_session
    from safesteer_edge.session.settings import SessionSettings


__all__ = [
    "ChatMessage",
    "ChatStore",
    "EngineDiedError",
    "Event",
    "InputError",
    "IsolatedSession",
    "MediaPrepared",
    "PrefillDone",
    "RecordedChat",
    "Refused",
    "SafeSteerError",
    "SamplingSettings",
    "Session",
    "SessionInfo",
    "SessionSettings",
    "Step",
    "TextDelta",
    "TurnEnded",
    "TurnSettings",
    "__version__",
    "event_from_json",
    "event_to_json",
    "open_isolated_session",
    "open_session",
]

_MODULES = {
    "safesteer_edge.session.protocol": ("ChatMessage", "SessionInfo", "TurnSettings"),
    "safesteer_edge.chats.chat_store": ("ChatStore",),
    "safesteer_edge.errors": ("EngineDiedError", "InputError", "SafeSteerError"),
    "safesteer_edge.guard.events": (
        "Event",
        "MediaPrepared",
        "PrefillDone",
        "Refused",
        "Step",
        "TextDelta",
        "TurnEnded",
        "event_from_json",
        "event_to_json",
    ),
    "safesteer_edge.guard.policy": ("SamplingSettings",),
    "safesteer_edge.session.isolated_session": ("IsolatedSession", "open_isolated_session"),
    "safesteer_edge.chats.recorded_chat": ("RecordedChat",),
    "safesteer_edge.session.session": ("Session", "open_session"),
    "safesteer_edge.session.settings": ("SessionSettings",),
}
_MODULE_BY_NAME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)
