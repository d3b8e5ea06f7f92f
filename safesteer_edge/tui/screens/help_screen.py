"""Keys and commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from safesteer_edge.tui.slash_commands import COMMANDS

_KEYS = (
    ("Enter", "send"),
    ("Ctrl+J, Shift+Enter", "new line; a \\ before Enter makes one in any terminal"),
    ("Esc", "stop the answer; leave what is open"),
    ("Up, Down", "at the edge of the input: earlier messages"),
    ("Tab, Shift+Tab", "to the answers above; e r f c i n t a then act on one"),
    ("Page Up, wheel", "scroll the chat"),
    ("Ctrl+C", "copy what the mouse selected (Shift selects outside the app)"),
    ("Ctrl+V, drop", "paste text, a picture or its path"),
    ("Ctrl+P", "menu of everything"),
)


class HelpScreen(ModalScreen[None]):
    """Over the chat; any of its keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "Close"),
        Binding("f1", "dismiss", "Close", id="chat.help"),
    ]

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle; background: $background 60%;
        & VerticalScroll {
            width: 78; max-width: 96%; height: auto; max-height: 90%;
            border: round $primary; padding: 0 2; background: $surface;
        }
        & .heading { color: $primary; text-style: bold; margin: 1 0 0 0; }
        & Static { height: auto; }
    }
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        """labels: of the commands' keys."""
        super().__init__()
        self._labels = labels

    def compose(self) -> ComposeResult:
        """Two lists."""
        with VerticalScroll() as box:
            box.border_title = "Help"
            box.border_subtitle = "Esc closes"
            yield Static(Content("Keys"), classes="heading")
            yield Static(
                _rows([(self._labels["interrupt"] if k == "Esc" else k, t) for k, t in _KEYS], 22)
            )
            yield Static(Content("Commands"), classes="heading")
            yield Static(
                _rows(
                    [
                        (c.usage, f"{c.help}{f'  [{key}]' if key else ''}")
                        for c in COMMANDS
                        for key in (self._labels.get(c.name, c.keys),)
                    ],
                    34,
                )
            )


def _rows(rows: object, width: int) -> Content:
    lines = [
        Content.styled(f"{key:<{width}}", "bold") + Content(text)
        for key, text in rows  # pyright: ignore[reportGeneralTypeIssues]
    ]
    return Content("\n").join(lines)
