"""Pictures and sounds of a message: a line of words for each, and small views of the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual.content import Content
from textual.widget import Widget

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.media_line import media_line
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.typed_paths import is_sound
from safesteer_edge.tui.widgets.picture import Picture


def media_lines(turn: ShownTurn) -> Content:
    """Names of the files with a sign of what they are; sizes and tokens, once they are known."""
    if turn.media:
        signs = {"image": "▣", "audio": "♪"}
        return Content("\n".join(f"{signs[each.kind]} {media_line(each)}" for each in turn.media))
    files = (*turn.images, *turn.sounds)
    names = turn.media_names or tuple(path.name for path in files)
    shown = [
        f"{'♪' if is_sound(path) else '▣'} {strip_control_characters(name)}"
        for path, name in zip(files, names, strict=False)
    ]
    return Content("   ".join(shown))


def media_views(images: Iterable[Path]) -> Iterable[Widget]:
    """A small view of each picture."""
    return (Picture(path) for path in images)
