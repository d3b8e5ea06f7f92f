"""From a conversation to what the engine evaluates: template, tokens, encoded media."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from safesteer_edge.chat.conversation import Conversation, Message
from safesteer_edge.chat.prompt_parts import MediaPart, render_parts
from safesteer_edge.chat.special_tokens import tokenize_parts
from safesteer_edge.chat.template import ChatTemplate
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import EncodedMedia, Projector
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.errors import MediaError
from safesteer_edge.media.images import DecodedImage
from safesteer_edge.media.sounds import DecodedSound

Media = DecodedImage | DecodedSound


def prompt_items(
    conversation: Conversation,
    *,
    template: ChatTemplate,
    model: NativeModel,
    projector: Projector | None = None,
    media: Mapping[str, Media] | None = None,
    on_encoded: Callable[[Media, EncodedMedia], None] | None = None,
) -> list[PromptItem]:
    """Render, tokenise and encode a conversation, ready for an answer.

    media: decoded media by the sha256 that the conversation names. Costs a pass of the projector
    for each medium that it has not seen. on_encoded: told of each, in the prompt's order.
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
            if on_encoded is not None:
                on_encoded(medium, encoded)
        else:
            items.append(TokenRun(span.token_ids))
    return items


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
