"""What became of each picture and sound of a question: the session's account of it."""

from __future__ import annotations

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.engine.projector import EncodedMedia
from safesteer_edge.guard.events import MediaPrepared
from safesteer_edge.media.images import DecodedImage
from safesteer_edge.prompting import Media


class PreparedMedia:
    """Told of each medium of a prompt as it is encoded (`prompting.prompt_items`)."""

    def __init__(self) -> None:
        self._events: list[MediaPrepared] = []

    def add(self, medium: Media, encoded: EncodedMedia) -> None:
        """Note the next one, in the prompt's order."""
        self._events.append(_prepared(medium, encoded))

    @property
    def n_encoded(self) -> int:
        """Those that were not in the projector's cache."""
        return sum(not event.from_cache for event in self._events)

    def last(self, n_media: int) -> tuple[MediaPrepared, ...]:
        """The last n: those of the question, which ends the prompt."""
        return tuple(self._events[len(self._events) - n_media :])


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
