"""One line for people on what became of a picture or a sound."""

from __future__ import annotations

from safesteer_edge.guard.events import MediaPrepared


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
