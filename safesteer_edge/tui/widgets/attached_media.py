"""Files of a message: a line of words for each, and small views of the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from textual.content import Content
from textual.widget import Widget

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.media_line import media_line
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.typed_paths import sign_of
from safesteer_edge.tui.widgets.picture import Picture


def media_lines(turn: ShownTurn) -> Content:
    """Names of the files with a sign of what they are; sizes and tokens, once they are known."""
    names = turn.media_names or tuple(path.name for path in turn.files)
    shown = [
        f"{sign_of(path)} {strip_control_characters(name)}"
        for path, name in zip(turn.files, names, strict=False)
    ]
    if not turn.media:
        return Content("   ".join(shown))
    signs = {"image": "▣", "audio": "♪"}
    media = [f"{signs[each.kind]} {media_line(each)}" for each in turn.media]
    return Content("\n".join([*media, *shown[len(shown) - len(turn.documents) :]]))


def media_views(images: Iterable[Path]) -> Iterable[Widget]:
    """A small view of each picture."""
    return (Picture(path) for path in images)
