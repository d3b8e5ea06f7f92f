"""Shown once, before the first chat."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

_SECTIONS = (
    (
        "What this is",
        "A chat with a model that runs on this machine; nothing leaves it. A guard reads along "
        "while words are chosen, steers away from harm, and says when it did.",
    ),
    (
        "What the built-in model can do",
        "Show how everything works. It is tiny: fluent, and often wrong. It names simple "
        "drawings, and does not read what is written in pictures.",
    ),
    (
        "How to get a real one",
        "/models lists them, and what installs each. Any GGUF file runs with --model.",
    ),
)


class FirstRunScreen(ModalScreen[None]):
    """Three short paragraphs and a button."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Start")]

    DEFAULT_CSS = """
    FirstRunScreen {
        align: center middle; background: $background;
        & #first-run {
            width: 66; max-width: 94%; height: auto; padding: 1 3; border: round $primary;
        }
        & .heading { color: $primary; text-style: bold; height: auto; }
        & .text { margin: 0 0 1 0; height: auto; }
    }
    """

    def compose(self) -> ComposeResult:
        """Headings with a text each."""
        with Vertical(id="first-run") as box:
            box.border_title = "◆ SafeSteer Edge"
            for heading, text in _SECTIONS:
                yield Static(Content(heading), classes="heading")
                yield Static(Content(text), classes="text")
            yield Button("Start chatting", variant="primary", compact=True)

    def on_button_pressed(self) -> None:
        """Read."""
        self.dismiss(None)
