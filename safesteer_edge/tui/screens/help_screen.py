"""Keys and commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
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
    ("Ctrl+V, drop", "paste text, a picture or its path; Tab unfolds a long paste"),
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
            scrollbar-size-vertical: 1;
        }
        & .heading { color: $primary; text-style: bold; margin: 1 0 0 0; }
        & .row { height: auto; }
        & Static { height: auto; width: 1fr; }
        & .name { text-style: bold; padding: 0 1 0 0; }
        & .name.-key { width: 22; }
        & .name.-command { width: 31; }
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
            for key, text in _KEYS:
                yield _row(self._labels["interrupt"] if key == "Esc" else key, text, "key")
            yield Static(Content("Commands"), classes="heading")
            for command in COMMANDS:
                key = self._labels.get(command.name, command.keys)
                yield _row(command.usage, f"{command.help}{f'  [{key}]' if key else ''}", "command")


def _row(name: str, text: str, kind: str) -> Horizontal:
    return Horizontal(
        Static(Content(name), classes=f"name -{kind}"), Static(Content(text)), classes="row"
    )
