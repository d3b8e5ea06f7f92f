"""What an empty chat shows."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

_LINES = (
    ("Ask about text or a picture.", "Type below, and press Enter."),
    ("Ctrl+O", "attach a picture; or drop, paste or type its path"),
    ("F2", "your chats"),
    ("F3", "models: this one is small and often wrong"),
    ("F4", "settings: how strict the guard is, how words are drawn"),
    ("F1", "all keys and commands"),
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

    def compose(self) -> ComposeResult:
        """Name, then what to do."""
        yield Static(Content("◆ SafeSteer Edge"), classes="name")
        head, *rest = _LINES
        lines = [Content(f"{head[0]} {head[1]}"), Content("")]
        lines += [Content.styled(f"{key:>7}", "bold") + Content(f"  {text}") for key, text in rest]
        yield Static(Content("\n").join(lines), classes="lines")
