"""The lines of a chat's file: each a small fact that is never changed, only added to.

Messages form a tree: each names its parent, so an edited question or a second answer stands beside
the first. The chat shows the branch that ends at its head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

from safesteer_edge.errors import ChatFileError
from safesteer_edge.formats.json_values import from_json, load_json, to_json
from safesteer_edge.guard.events import AnswerPart, GuardSummary, Refused, Usage
from safesteer_edge.templates.conversation import Role

SCHEMA_VERSION: Final = 1
_END_OF_TIME_S: Final = 32_503_680_000  # the year 3000: Windows shows no later date
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
StoredKind = Literal["image", "audio", "document"]
EndReason = Literal["stop", "length", "loop", "refused", "cancelled", "died"]


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """What answered. The hashes tell files from others of the same name; see `SessionInfo`."""

    name: str
    path: str
    architecture: str
    quantization: str
    tensor_table_sha256: str
    mmproj: str | None
    bundle: str | None
    probe_sha256: str | None


@dataclass(frozen=True, slots=True)
class ChatHeader:
    """The first line. at: seconds since 1970, as everywhere. forked_from: another chat's id."""

    id: str
    at: float
    model: ModelUsed | None = None
    forked_from: str | None = None
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class StoredMedia:
    """A picture, sound or document.

    sha256: of the file's bytes. file: its name in the media folder. name: what it was called.
    """

    kind: StoredKind
    sha256: str
    file: str
    name: str


@dataclass(frozen=True, slots=True)
class MessageAdded:
    """A system prompt, a question, or an answer that begins. It becomes the head."""

    id: str
    parent: str | None
    role: Role
    at: float
    text: str = ""
    media: tuple[StoredMedia, ...] = ()


@dataclass(frozen=True, slots=True)
class TextAdded:
    """More text of an answer, or of a thinking model's reasoning before it."""

    id: str
    text: str
    part: AnswerPart = "answer"


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """An answer ended, for now: it may be continued, with more text and another end.

    An answer without an end was cut off with the program. guard, usage: None where it died.
    """

    id: str
    at: float
    reason: EndReason
    guard: GuardSummary | None = None
    usage: Usage | None = None
    refusal: Refused | None = None


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """A question that was not answered leaves; its parent becomes the head."""

    id: str


@dataclass(frozen=True, slots=True)
class HeadMoved:
    """Another branch is shown. id None: before the first message."""

    id: str | None


@dataclass(frozen=True, slots=True)
class Titled:
    """The user named the chat."""

    title: str


@dataclass(frozen=True, slots=True)
class ModelChanged:
    """From here on another model, or another guard, answers."""

    model: ModelUsed
    at: float


Record: TypeAlias = (
    ChatHeader
    | MessageAdded
    | TextAdded
    | AnswerEnded
    | MessageDropped
    | HeadMoved
    | Titled
    | ModelChanged
)

_NAMES: Final[Mapping[type[Any], str]] = {
    ChatHeader: "chat",
    MessageAdded: "message",
    TextAdded: "text",
    AnswerEnded: "end",
    MessageDropped: "drop",
    HeadMoved: "head",
    Titled: "title",
    ModelChanged: "model",
}
_KINDS: Final = {name: kind for kind, name in _NAMES.items()}


def record_to_line(record: Record) -> bytes:
    """One record as one line of ASCII JSON."""
    value = {"type": _NAMES[type(record)], **to_json(record)}
    if isinstance(record, TextAdded) and record.part == "answer":
        del value["part"]  # as ever, so that older programs read chats of most models
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def record_from_line(line: bytes) -> Record:
    """The record of a line. Raises ChatFileError, with the reason alone."""
    try:
        value = load_json(line.decode("utf-8"))
        if _SURROGATE.search(line):  # a half of a character, which no file or terminal takes
            whole = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass")
            value = load_json(whole.decode("utf-16", "replace"))
        if not isinstance(value, dict):
            raise ChatFileError("not an object")
        name, schema = value.pop("type", None), value.get("schema")
        kind = _KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ChatFileError(f"no record is called {name!r}")
        if kind is ChatHeader and schema != SCHEMA_VERSION:
            raise ChatFileError(
                f"its schema is {schema!r}, and this program reads {SCHEMA_VERSION}"
            )
        record = cast("Record", from_json(kind, value))
    except ValueError as error:  # no UTF-8, or a bad value
        raise ChatFileError(str(error)) from error
    except RecursionError as error:
        raise ChatFileError("it is nested too deeply") from error
    at: float = getattr(record, "at", 0.0)
    if not 0 <= at < _END_OF_TIME_S:
        raise ChatFileError(f"its time is {at!r}; expected seconds since 1970")
    return record
