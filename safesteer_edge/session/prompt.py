"""From a conversation to what the engine evaluates: template, tokens, media; and what beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from safesteer_edge.engine.main_sequence import to_entries
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import EncodedMedia, Projector
from safesteer_edge.engine.prompt_items import (
    PromptItem,
    TextPrompt,
    TokenRun,
    message_span,
    n_tokens_of,
    text_prompt,
)
from safesteer_edge.errors import MediaError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.events import MediaPrepared
from safesteer_edge.guard.readings import Reading, ReadingCurves, readings_of, stands_out
from safesteer_edge.media.decoder import DecodedImage, DecodedSound
from safesteer_edge.templates.conversation import Conversation, MediaContent, Message
from safesteer_edge.templates.prompt_parts import MediaPart, render_parts
from safesteer_edge.templates.special_tokens import tokenize_parts
from safesteer_edge.templates.template import ChatTemplate

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime

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


# -- what a turn reads beside its prompt: which texts, as which tokens, and how many of them -------
# A sentence is read alone where its mean state within the prompt scores higher than half of all
# benign prompts do: of harmful ones next to none score lower. Of many, those that score highest
# are, up to a quarter of the prompt's tokens.

_LEAST_READ: Final = 256  # tokens that sentences may take of any prompt
_LARGEST_SHARE: Final = 0.25  # of a long prompt's tokens
_TAIL: Final = 24  # characters that a sentence's end is found by


@dataclass(frozen=True, slots=True)
class SidePrompt:
    """A reading as a prompt of its own, as the only message.

    n_own: its tokens behind those that all readings begin with, which are evaluated once.
    """

    reading: Reading
    prompt: TextPrompt
    n_own: int


def side_prompts(conversation: Conversation, runtime: Runtime) -> list[SidePrompt]:
    """What is to be read beside the last message of a conversation; a plain sentence: nothing."""
    messages = conversation.messages
    asked = [message.text for message in messages if message.role == "user" and message.text]
    if not messages or messages[-1].role != "user" or not messages[-1].text.strip():
        return []
    readings = readings_of(asked[-1], asked[:-1])
    if len(messages) > 1 and all(reading.kind != "readable" for reading in readings):
        # As if nobody had said anything before: a long system prompt makes what is asked look mild.
        readings.insert(0, Reading("readable", asked[-1]))
    found = [(reading, alone_prompt(reading.text, runtime)) for reading in readings]
    columns = zip(*(prompt.token_ids for _, prompt in found), strict=False)
    n_shared = sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, columns))
    return [
        SidePrompt(reading, prompt, max(1, len(prompt.token_ids) - n_shared))
        for reading, prompt in found
    ]


def alone_prompt(text: str, runtime: Runtime) -> TextPrompt:
    """The prompt that asks this alone, as calibration asks: nobody's system prompt comes first."""
    return text_prompt(question_items(text, template=runtime.template, model=runtime.model))


def sentence_spans(
    sides: Sequence[SidePrompt], items: Sequence[PromptItem], piece: Callable[[int], bytes]
) -> dict[range, SidePrompt]:
    """Where in the prompt each sentence lies that can be found there."""
    parts = _parts(sides)
    if not parts:
        return {}
    entries = to_entries(items)
    text, ends = bytearray(), list[int]()
    for entry in entries:
        text += piece(entry.key) if isinstance(entry.key, int) else b""
        ends.append(len(text))
    spans: dict[range, SidePrompt] = {}
    message = message_span(items)
    at = len(text)
    for side in reversed(parts):  # from its end: the last message is what is looked for
        sentence = side.reading.text.encode()
        found = text.rfind(sentence[-_TAIL:], 0, at)
        if found >= 0:
            at = found
            end = found + len(sentence[-_TAIL:])
            first, last = np.searchsorted(ends, [max(0, end - len(sentence)) + 1, end]).tolist()
            span = range(max(first, message.start), min(last + 1, message.stop))
            if span:
                spans[span] = side
    return spans


def sides_read(
    sides: Sequence[SidePrompt],
    items: Sequence[PromptItem],
    located: Mapping[SidePrompt, float],
    curves: ReadingCurves,
) -> list[SidePrompt]:
    """Those that are read. located: the scores of those whose place in the prompt is known."""
    left = max(_LEAST_READ, int(_LARGEST_SHARE * n_tokens_of(items)))
    # What could not be found is taken from the message's end.
    in_order = [
        *sorted(located, key=lambda side: -located[side]),
        *(side for side in reversed(_parts(sides)) if side not in located),
    ]
    chosen = [side for side in sides if side.reading.kind != "part"]
    for side in in_order:
        if side in located and not stands_out(located[side], curves):
            continue
        left -= side.n_own
        if left < 0:
            break
        chosen.append(side)
    return chosen


def _parts(sides: Sequence[SidePrompt]) -> list[SidePrompt]:
    return [side for side in sides if side.reading.kind == "part"]


def media_texts(conversation: Conversation, read: Callable[[MediaContent], str]) -> tuple[str, ...]:
    """What is said with media in the context, each as a message of its own.

    The last message's words, what is written in the last pictures, and both together: a request may
    be half in either. A picture of an earlier message counts together with the last words alone;
    by itself it was looked at in its own turn. None where no media are in the context: then the
    prompt is those words. read: what is written in a picture.
    """
    if not any(message.media for message in conversation):
        return ()
    last = conversation.messages[-1]
    said = last.text.strip()
    pictured = next((m for m in reversed(conversation.messages) if _pictures(m)), last)
    written = " ".join(filter(None, map(read, _pictures(pictured))))
    texts = [last.text if said else "", written if pictured is last else ""]
    if said and written:
        texts.append(f"{last.text}\n{written}")
    return tuple(filter(None, texts))


def _pictures(message: Message) -> list[MediaContent]:
    return [medium for medium in message.media if medium.kind == "image"]
