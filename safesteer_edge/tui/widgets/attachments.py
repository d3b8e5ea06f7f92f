"""Files of a message: a line of words for each, and small views of the pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.prompt import media_line
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


# -- files that the next message carries; a click, or Backspace in an empty input, removes one -----


@dataclass
class AttachmentRemoved(Message):
    """index: which one."""

    index: int


class _Chip(Static):
    DEFAULT_CSS = """
    _Chip { width: auto; height: 1; background: $panel; padding: 0 1; margin: 0 1 0 0;
            &:hover { background: $primary; color: $background; } }
    """

    def __init__(self, index: int, text: str) -> None:
        super().__init__(Content(text))
        self._index = index
        self.tooltip = "click to take it off"

    def on_click(self) -> None:
        self.post_message(AttachmentRemoved(self._index))


class AttachmentBar(Horizontal):
    """Hidden while there is nothing to send along."""

    DEFAULT_CSS = """
    AttachmentBar { height: 1; padding: 0 2; display: none; &.-shown { display: block; }
                    layout: horizontal;
                    & .hint { width: auto; color: $foreground 60%; } }
    """

    async def show(self, paths: list[Path]) -> None:
        """Show these files."""
        self.set_class(bool(paths), "-shown")
        await self.remove_children()
        chips = [_Chip(i, f"{sign_of(path)} {_short(path)} ×") for i, path in enumerate(paths)]
        await self.mount_all([*chips, Static(Content("Backspace removes"), classes="hint")])


def _short(path: Path) -> str:
    name = strip_control_characters(path.name)
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"
