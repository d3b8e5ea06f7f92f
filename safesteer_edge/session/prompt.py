"""From a conversation to what the engine evaluates: template, tokens, encoded media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import EncodedMedia, Projector
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.errors import MediaError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.events import MediaPrepared
from safesteer_edge.media.decoder import DecodedSound
from safesteer_edge.media.images import DecodedImage
from safesteer_edge.templates.conversation import Conversation, Message
from safesteer_edge.templates.prompt_parts import MediaPart, render_parts
from safesteer_edge.templates.special_tokens import tokenize_parts
from safesteer_edge.templates.template import ChatTemplate

Media = DecodedImage | DecodedSound


def prompt_items(
    conversation: Conversation,
    *,
    template: ChatTemplate,
    model: NativeModel,
    projector: Projector | None = None,
    media: Mapping[str, Media] | None = None,
    prepared: list[MediaPrepared] | None = None,
) -> list[PromptItem]:
    """Render, tokenise and encode a conversation, ready for an answer.

    media: decoded media by the sha256 that the conversation names. Costs a pass of the projector
    for each medium that it has not seen. prepared: what became of each is added to it, in order.
    Raises TemplateError, MediaError, EngineError.
    """
    items: list[PromptItem] = []
    for span in tokenize_parts(render_parts(template, conversation), vocabulary=model):
        if isinstance(span, MediaPart):
            medium = (media or {}).get(span.sha256)
            if medium is None:
                raise MediaError(
                    f"the conversation names an {span.kind} that is not at hand (SHA-256 "
                    f"{span.sha256}); attach it again"
                )
            encoded = _encode(medium, projector)
            items.extend(encoded.items)
            if prepared is not None:
                prepared.append(_prepared(medium, encoded))
        else:
            items.append(TokenRun(span.token_ids, is_content=span.origin == "content"))
    return items


def without_oldest_turns(conversation: Conversation, n_turns: int) -> Conversation:
    """The conversation without its n oldest questions and their answers.

    The system prompt stays, and so does what the last message says; the turn with the latest
    picture or sound goes last, for later questions may be about it. At most `n_old_turns` go.
    """
    n_system, order = _order_of_leaving(conversation)
    gone = {n_system + 2 * turn + half for turn in order[:n_turns] for half in (0, 1)}
    kept = (each for index, each in enumerate(conversation) if index not in gone)
    return replace(conversation, messages=tuple(kept))


def n_old_turns(conversation: Conversation) -> int:
    """How many turns there are before the last question."""
    return len(_order_of_leaving(conversation)[1])


def _order_of_leaving(conversation: Conversation) -> tuple[int, list[int]]:
    """The number of system messages, and the turns in the order in which they are left out."""
    messages = conversation.messages
    n_system = sum(message.role == "system" for message in messages)
    turns = list(range((len(messages) - n_system - 1) // 2))
    pictured = [index for index, message in enumerate(messages) if message.media]
    latest = (pictured[-1] - n_system) // 2 if pictured else -1
    return n_system, sorted(turns, key=lambda turn: turn == latest)


def question_items(text: str, *, template: ChatTemplate, model: NativeModel) -> list[PromptItem]:
    """The prompt of a new conversation that asks `text`."""
    conversation = Conversation((Message.from_text("user", text),))
    return prompt_items(conversation, template=template, model=model)


def _encode(media: Media, projector: Projector | None) -> EncodedMedia:
    if projector is None:
        raise MediaError("the conversation carries media and no projector is loaded; use --mmproj")
    if isinstance(media, DecodedImage):
        return projector.encode_image(media.pixels, sha256=media.sha256)
    return projector.encode_audio(media.samples, sha256=media.sha256)


def _prepared(medium: Media, encoded: EncodedMedia) -> MediaPrepared:
    is_image = isinstance(medium, DecodedImage)
    return MediaPrepared(
        kind="image" if is_image else "audio",
        name=strip_control_characters(" ".join(medium.name.split())),
        original_width=medium.original_width if is_image else 0,
        original_height=medium.original_height if is_image else 0,
        width=medium.width if is_image else 0,
        height=medium.height if is_image else 0,
        seconds=0.0 if is_image else medium.seconds,
        n_tokens=encoded.n_tokens,
        encode_s=encoded.encode_s,
        from_cache=encoded.from_cache,
    )


# -- one line for people on what became of a picture or a sound ------------------------------------


def media_line(event: MediaPrepared) -> str:
    """E.g. 'photo.jpg 4032×3024 → 224×224, 64 tokens, 0.21 s'."""
    effort = "from the cache" if event.from_cache else f"{event.encode_s:.2f} s"
    return f"{event.name} {_size(event)}, {event.n_tokens} tokens, {effort}"


def _size(event: MediaPrepared) -> str:
    if event.kind == "audio":
        return f"{event.seconds:.1f} s of sound"
    original, seen = (event.original_width, event.original_height), (event.width, event.height)
    sizes = [original] if original == seen else [original, seen]
    return " → ".join(f"{width}×{height}" for width, height in sizes)
