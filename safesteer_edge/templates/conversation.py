"""What was said: immutable values that can be written to JSON and read back.

A conversation knows nothing of templates, tokens of a vocabulary, or pixels: an image is named
by the SHA-256 of its pixels, and whoever stores conversations stores the media beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from safesteer_edge.errors import InputError

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["image", "audio"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TextContent:
    """Text that a person or the model wrote. It is never parsed for control tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaContent:
    """An image or a sound, named by its content.

    sha256: of its decoded content, 64 lower-case hexadecimal digits.
    """

    kind: MediaKind
    sha256: str


Content = TextContent | MediaContent


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    token_ids: for an assistant message, the exact tokens that the model produced, without the
        end-of-generation token, so that the next turn finds them in the KV cache (tokenising the
        text again may give others). They mean something to that model's vocabulary alone.
    reasoning: what a thinking model wrote before its answer; None if it did not. It is part of
        `token_ids` and not of the content: the next prompt leaves it out.
    """

    role: Role
    content: tuple[Content, ...]
    token_ids: tuple[int, ...] | None = None
    reasoning: str | None = None

    @classmethod
    def from_text(
        cls, role: Role, text: str, *, token_ids: tuple[int, ...] | None = None
    ) -> Message:
        """Make a message that is one text."""
        return cls(role, (TextContent(text),), token_ids)

    @property
    def text(self) -> str:
        """All texts of the message, each on a line of its own, without the media."""
        return "\n".join(item.text for item in self.content if isinstance(item, TextContent))

    @property
    def media(self) -> tuple[MediaContent, ...]:
        """The media of the message, in order."""
        return tuple(item for item in self.content if isinstance(item, MediaContent))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. Adding one makes a new conversation."""

    messages: tuple[Message, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def with_message(self, message: Message) -> Conversation:
        """Return this conversation with one more message at its end."""
        return Conversation((*self.messages, message))

    def without_token_ids(self) -> Conversation:
        """Return the same texts with no tokens: for another model, or from an untrusted file."""
        return Conversation(tuple(replace(message, token_ids=None) for message in self.messages))

    def to_json(self) -> dict[str, Any]:
        """Return a value that `json.dumps` takes and `from_json` reads back to an equal one."""
        return {"messages": [_message_to_json(message) for message in self.messages]}

    @classmethod
    def from_json(cls, value: object) -> Conversation:
        """Read what `to_json` wrote. Raises InputError that names the place of the mistake."""
        messages = _field(value, "messages", "conversation")
        if not isinstance(messages, list):
            raise _mistake("conversation", "'messages' to be a list", messages)
        items = cast("list[object]", messages)
        return cls(tuple(_message_from_json(item, index) for index, item in enumerate(items)))


def _message_to_json(message: Message) -> dict[str, Any]:
    content: list[dict[str, str]] = [
        {"type": "text", "text": item.text}
        if isinstance(item, TextContent)
        else {"type": item.kind, "sha256": item.sha256}
        for item in message.content
    ]
    value: dict[str, Any] = {"role": message.role, "content": content}
    if message.token_ids is not None:
        value["token_ids"] = list(message.token_ids)
    if message.reasoning is not None:
        value["reasoning"] = message.reasoning
    return value


def _message_from_json(value: object, index: int) -> Message:
    where = f"message {index} of the conversation"
    role = _field(value, "role", where)
    content = _field(value, "content", where)
    if role not in get_args(Role):
        raise _mistake(where, f"'role' to be one of {get_args(Role)}", role)
    if not isinstance(content, list):
        raise _mistake(where, "'content' to be a list", content)
    items = tuple(_content_from_json(item, where) for item in cast("list[object]", content))
    fields = cast("Mapping[str, object]", value)
    reasoning = fields.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise _mistake(where, "'reasoning' to be a string", reasoning)
    token_ids = _token_ids_from_json(fields.get("token_ids"), where)
    return Message(cast("Role", role), items, token_ids, reasoning)


def _content_from_json(value: object, where: str) -> Content:
    kind = _field(value, "type", where)
    if kind == "text":
        text = _field(value, "text", where)
        if not isinstance(text, str):
            raise _mistake(where, "'text' to be a string", text)
        return TextContent(text)
    if kind not in get_args(MediaKind):
        raise _mistake(where, f"'type' to be 'text' or one of {get_args(MediaKind)}", kind)
    sha256 = _field(value, "sha256", where)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise _mistake(where, "'sha256' to be 64 lower-case hexadecimal digits", sha256)
    return MediaContent(cast("MediaKind", kind), sha256)


def _token_ids_from_json(value: object, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _mistake(where, "'token_ids' to be a list", value)
    token_ids = cast("Sequence[object]", value)
    # JSON's true is an int in Python: `type` is meant, not isinstance.
    if any(type(token_id) is not int or token_id < 0 for token_id in token_ids):
        raise _mistake(where, "'token_ids' to be integers from 0", value)
    return tuple(cast("Sequence[int]", token_ids))


def _field(value: object, name: str, where: str) -> object:
    if not isinstance(value, dict):
        raise _mistake(where, "an object", value)
    if name not in value:
        raise InputError(f"cannot read the {where}: expected a field {name!r}, found none")
    return cast("dict[str, object]", value)[name]


def _mistake(where: str, expected: str, value: object) -> InputError:
    return InputError(f"cannot read the {where}: expected {expected}, got {repr(value)[:80]}")
