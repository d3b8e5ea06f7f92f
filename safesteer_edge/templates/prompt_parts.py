"""A rendered prompt in parts that keep apart what the template wrote and what people wrote.

The template is rendered with an unguessable placeholder in the place of every text and every
image, and the result is cut at the placeholders. So the template cannot act on what is said (a
poisoned one cannot wait for its trigger), and nothing that is said can pass for the template's
own control tokens.

White space around a text stays with its placeholder, so that a template that trims does so, and
one that does not leaves it, with the same result as if it had seen the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from safesteer_edge.errors import TemplateError
from safesteer_edge.templates.conversation import (
    Conversation,
    MediaContent,
    MediaKind,
    Message,
    Role,
    TextContent,
    ToolResult,
)
from safesteer_edge.templates.template import TEMPLATE_ADVICE, ChatTemplate, Placeholders


@dataclass(frozen=True, slots=True)
class ScaffoldPart:
    """Text from the template: control tokens in it are meant as such."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentPart:
    """Text that a person or the model wrote: plain, whatever it looks like.

    message_index: its message in the conversation.
    """

    text: str
    message_index: int


@dataclass(frozen=True, slots=True)
class ToolPart(ContentPart):
    """Text of a tool, or what it gave back. is_json: a JSON value, not a text in one."""

    is_json: bool = False


@dataclass(frozen=True, slots=True)
class MediaPart:
    """The place of an image or a sound."""

    kind: MediaKind
    sha256: str
    message_index: int


@dataclass(frozen=True, slots=True)
class TokensPart:
    """An answer whose tokens are known.

    text: what they say, for a vocabulary that cannot use them.
    """

    token_ids: tuple[int, ...]
    text: str
    message_index: int


_OF_NO_MESSAGE: Final = -1  # the tools'
PromptPart = ScaffoldPart | ContentPart | MediaPart | TokensPart


@dataclass(slots=True)
class _Draft:
    """Messages for the template, and what each placeholder in them stands for."""

    placeholders: Placeholders = field(default_factory=Placeholders.new)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    parts: list[ContentPart | MediaPart | TokensPart] = field(default_factory=list)

    def place(self, part: ContentPart | MediaPart | TokensPart) -> str:
        """Return what stands for the part; its number is its place among the parts."""
        word = self.placeholders.word(len(self.parts))
        if not isinstance(part, ContentPart) or isinstance(part, ToolPart):
            self.parts.append(part)
            return word
        core = part.text.strip()
        self.parts.append(ContentPart(core, part.message_index))
        left = part.text[: len(part.text) - len(part.text.lstrip())]
        return left + word + (part.text[len(left) + len(core) :])


def render_parts(
    template: ChatTemplate,
    conversation: Conversation,
    *,
    add_generation_prompt: bool = True,
) -> tuple[PromptPart, ...]:
    """Return the prompt of a conversation, in order; scaffold parts are never empty.

    A template without a system role gets the system text in front of the next user message.
    Raises TemplateError if the template refuses the conversation, or drops, repeats, changes or
    reorders a text. A system text may stand elsewhere (Mistral's stands in the last user message).
    """
    draft = _draft_messages(template, conversation)
    rendered = template.render(draft.messages, add_generation_prompt, draft.tools)
    texts, numbers = draft.placeholders.split(rendered)
    _check_complete(template, conversation, draft, numbers)
    _fit_into_json(texts, numbers, draft)
    padding = template.features().answer_padding
    parts: list[PromptPart] = []
    for text, part in zip(texts, [*(draft.parts[number] for number in numbers), None], strict=True):
        # The model's own tokens began right after the generation prompt: keep it so.
        scaffold = text.removesuffix(padding) if isinstance(part, TokensPart) else text
        if scaffold:
            parts.append(ScaffoldPart(scaffold))
        if part is not None:
            parts.append(part)
    return tuple(parts)


def _fit_into_json(texts: list[str], numbers: list[int], draft: _Draft) -> None:
    """Have tools' texts be JSON where the template has their placeholders in JSON: in quotes."""
    for place, number in enumerate(numbers):
        part = draft.parts[number]
        before, after = texts[place : place + 2]
        if isinstance(part, ToolPart) and before.endswith('"') and after.startswith('"'):
            if part.is_json:
                texts[place : place + 2] = before[:-1], after[1:]
            else:
                escaped = json.dumps(part.text, ensure_ascii=False)[1:-1]
                draft.parts[number] = replace(part, text=escaped)


def _draft_messages(template: ChatTemplate, conversation: Conversation) -> _Draft:
    draft = _Draft()
    for tool in conversation.tools:
        told = {"name": draft.place(ToolPart(tool.name, _OF_NO_MESSAGE))}
        if tool.description.strip():
            told["description"] = draft.place(ToolPart(tool.description, _OF_NO_MESSAGE))
        told["parameters"] = draft.place(ToolPart(tool.parameters, _OF_NO_MESSAGE, is_json=True))
        draft.tools.append({"type": "function", "function": told})
    merges_system = not template.features().takes_role("system")
    prefix = ""
    for index, message in enumerate(conversation):
        if message.role == "system" and merges_system:
            prefix += draft.place(ContentPart(message.text, index)) + "\n\n"
            continue
        if message.role == "assistant":
            content: Any = draft.place(_answer_part(message, index))
            if not template.features().takes_string("assistant"):
                content = [{"type": "text", "text": content}]
        else:
            message = _without_results(template, draft, message, index)
            if message is None:
                continue
            content = _draft_content(template, draft, message, index, prefix)
            prefix = ""
        draft.messages.append({"role": message.role, "content": content})
    if prefix:
        raise TemplateError(
            f"chat template of {template.name!r} knows no system messages, and no user message "
            "follows one to carry it; put the system message first"
        )
    return draft


def _without_results(
    template: ChatTemplate, draft: _Draft, message: Message, index: int
) -> Message | None:
    """Place the results of tools as messages of their own; what is left, None: nothing.

    Where a template knows no tools they stay, as a part of what the user says.
    """
    results = [item for item in message.content if isinstance(item, ToolResult)]
    if not results:
        return message
    others = tuple(item for item in message.content if item != TextContent(""))
    if "tool" in template.source:
        for result in results:
            word = draft.place(ToolPart(result.text, index))
            draft.messages.append({"role": "tool", "content": word})
        others = tuple(item for item in others if not isinstance(item, ToolResult))
    return replace(message, content=others) if others else None


def _answer_part(message: Message, index: int) -> ContentPart | TokensPart:
    """An answer as it was shown. Templates look for reasoning in it, which a placeholder hides."""
    if message.token_ids is None or message.reasoning is not None:
        return ContentPart(message.text, index)
    return TokensPart(message.token_ids, message.text, index)


def _draft_content(
    template: ChatTemplate, draft: _Draft, message: Message, index: int, prefix: str
) -> str | list[dict[str, str]]:
    """Place a user or system message's items: a string, media first, or parts in their order."""
    as_parts = _wants_parts(template, message.role, has_media=bool(message.media))
    items = list(message.content) or [TextContent("")]
    if not as_parts:
        items.sort(key=lambda item: not isinstance(item, MediaContent))
    parts: list[dict[str, str]] = []
    previous_is_text = False
    for item in items:
        is_text = not isinstance(item, MediaContent)
        word = draft.place(
            MediaPart(item.kind, item.sha256, index)
            if isinstance(item, MediaContent)
            else ContentPart(item.text, index)
        )
        if parts and (previous_is_text and is_text):
            parts[-1]["text"] += "\n" + word
        else:
            parts.append({"type": "text", "text": word})
        previous_is_text = is_text
    parts[0]["text"] = prefix + parts[0]["text"]
    return parts if as_parts else "".join(part["text"] for part in parts)


def _wants_parts(template: ChatTemplate, role: Role, *, has_media: bool) -> bool:
    features = template.features()
    return (has_media and role in features.parts_roles) or not features.takes_string(role)


def _check_complete(
    template: ChatTemplate, conversation: Conversation, draft: _Draft, numbers: list[int]
) -> None:
    """Raise TemplateError unless each part came back once, in order but for system texts."""
    for number, part in enumerate(draft.parts):
        if numbers.count(number) != 1:
            place = part.message_index
            what = "the tools" if place == _OF_NO_MESSAGE else f"the content of message {place}"
            raise TemplateError(
                f"chat template of {template.name!r} drops, repeats or changes {what}; "
                f"{TEMPLATE_ADVICE}"
            )
    said = [
        number
        for number in numbers
        if number >= len(draft.parts)
        or (
            draft.parts[number].message_index != _OF_NO_MESSAGE
            and conversation.messages[draft.parts[number].message_index].role != "system"
        )
    ]
    if said != sorted(said) or len(numbers) != len(draft.parts):
        raise TemplateError(
            f"chat template of {template.name!r} reorders what was said; {TEMPLATE_ADVICE}"
        )
