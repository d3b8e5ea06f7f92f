"""A long text to read: only the lines in view are ever drawn."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import TextArea


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
        self._text = text

    def compose(self) -> ComposeResult:
        """The text in a frame."""
        with Vertical() as box:
            n_lines = self._text.count("\n") + 1
            box.border_title = f"The whole answer, {n_lines:,} lines"
            box.border_subtitle = "↑↓ Page Up, Page Down, Ctrl+Home · Ctrl+C copies · Esc closes"
            yield TextArea(self._text, read_only=True, soft_wrap=True)
