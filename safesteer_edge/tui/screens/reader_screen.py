"""A long text to read: only the lines in view are ever drawn, and the first are there at once."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import TextArea

_PIECE_LINES = 400  # breaking them into rows is not felt
_PIECE_PAUSE_S = 0.03


class ReaderScreen(ModalScreen[None]):
    """Over the chat, from its first line; Escape closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", "Close")]

    DEFAULT_CSS = """
    ReaderScreen {
        align: center middle; background: $background 60%;
        & Vertical { width: 96%; height: 92%; border: round $primary; background: $surface; }
        & TextArea { border: none; padding: 0 1; height: 1fr; background: $surface; }
        & TextArea:focus { border: none; }
    }
    """

    def __init__(self, text: str) -> None:
        """text: safe for a terminal."""
        super().__init__()
        lines = text.splitlines(keepends=True)
        self._n_lines = text.count("\n") + 1
        self._pieces = [
            "".join(lines[start : start + _PIECE_LINES])
            for start in range(0, len(lines), _PIECE_LINES)
        ]

    def compose(self) -> ComposeResult:
        """The text in a frame."""
        with Vertical() as box:
            box.border_title = f"The whole answer, {self._n_lines:,} lines"
            box.border_subtitle = "↑↓ Page Up, Page Down, Ctrl+Home · Ctrl+C copies · Esc closes"
            yield TextArea("".join(self._pieces[:1]), read_only=True, soft_wrap=True)

    def on_mount(self) -> None:
        """Add the rest soon."""
        self._n_shown = 1
        self._timer = self.set_interval(_PIECE_PAUSE_S, self._add_piece)

    def _add_piece(self) -> None:
        if self._n_shown >= len(self._pieces):
            self._timer.stop()
            return
        area = self.query_one(TextArea)
        area.insert(self._pieces[self._n_shown], area.document.end)
        self._n_shown += 1
