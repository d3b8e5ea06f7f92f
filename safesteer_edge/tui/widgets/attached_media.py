"""Pictures and sounds of a message: a line of words, and small views of the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from textual.content import Content
from textual.widget import Widget

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.tui.typed_paths import is_sound
from safesteer_edge.tui.widgets.picture import Picture


def media_line(files: Sequence[Path]) -> Content:
    """Names of files, with a sign of what they are."""
    names = [
        f"{'♪' if is_sound(path) else '▣'} {strip_control_characters(path.name)}" for path in files
    ]
    return Content("   ".join(names))


def media_views(images: Iterable[Path]) -> Iterable[Widget]:
    """A small view of each picture."""
    return (Picture(path) for path in images)
