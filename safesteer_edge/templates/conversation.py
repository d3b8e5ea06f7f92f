"""What was said, as immutable values.

A conversation knows nothing of templates, tokens of a vocabulary, or pixels: an image is named
by the SHA-256 of its pixels, and whoever holds a conversation holds the media beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]
MediaKind = Literal["image", "audio"]


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


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool that the answer before called has given back: text of anybody's."""

    text: str


Content = TextContent | MediaContent | ToolResult


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an answer may call. parameters: their JSON schema, as JSON text."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    token_ids: for an assistant message, the exact tokens that the model produced, without the
        end-of-generation token, so that the next turn finds them in the KV cache (tokenising the
        text again may give others). They mean something to that model's vocabulary alone.
    reasoning: what a thinking model wrote before its answer, '' if that was marks alone. It is part
        of `token_ids` and not of the content: the next prompt leaves it out. None: the tokens say
        the content and no more.
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
        return "\n".join(item.text for item in self.content if not isinstance(item, MediaContent))

    @property
    def media(self) -> tuple[MediaContent, ...]:
        """The media of the message, in order."""
        return tuple(item for item in self.content if isinstance(item, MediaContent))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. Adding one makes a new conversation. tools: what answers may call."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def with_message(self, message: Message) -> Conversation:
        """Return this conversation with one more message at its end."""
        return replace(self, messages=(*self.messages, message))
