"""What an empty chat shows."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

_LINES = (
    ("Ask about text or a picture.", "Type below, and press Enter."),
    ("attach", "attach a picture, a PDF or a text; or drop, paste or type its path"),
    ("chats", "your chats"),
    ("models", "models: the built-in one is small and often wrong"),
    ("settings", "settings: how strict the guard is, how words are drawn"),
    ("help", "all keys and commands"),
)


class Welcome(Vertical):
    """A few lines, in the middle."""

    DEFAULT_CSS = """
    Welcome {
        height: 100%; align: center middle;
        & Static { width: auto; }
        & .name { text-style: bold; color: $primary; }
        & .lines { margin: 1 0 0 0; color: $foreground 80%; }
    }
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        """labels: of the commands' keys."""
        super().__init__()
        self._lines = Static(self._text(labels), classes="lines")

    def compose(self) -> ComposeResult:
        """Name, then what to do."""
        yield Static(Content("◆ SafeSteer Edge"), classes="name")
        yield self._lines

    def show_keys(self, labels: Mapping[str, str]) -> None:
        """Name these keys."""
        self._lines.update(self._text(labels))

    def _text(self, labels: Mapping[str, str]) -> Content:
        head, *rest = _LINES
        lines = [Content(f"{head[0]} {head[1]}"), Content("")]
        width = max(7, *(len(labels[name]) for name, _ in rest))
        lines += [
            Content.styled(f"{labels[name]:>{width}}", "bold") + Content(f"  {text}")
            for name, text in rest
        ]
        return Content("\n").join(lines)
