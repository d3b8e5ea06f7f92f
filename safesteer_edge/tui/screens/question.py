"""A small box that asks: a choice between buttons, or a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from safesteer_edge.chat.display_text import strip_control_characters

_BOX_CSS = """
    {name} {{
        align: center middle; background: $background 60%;
        & #question {{
            width: 68; max-width: 92%; height: auto; max-height: 90%; padding: 1 2;
            border: round $primary; background: $surface;
        }}
        & Static {{ height: auto; margin: 0 0 1 0; }}
        & Horizontal {{ height: auto; }}
        & Button {{ margin: 0 2 0 0; padding: 0 1; min-width: 8; }}
        & Input {{ border: round $border; height: 3; &:focus {{ border: round $primary; }} }}
    }}
"""


class ChoiceScreen(ModalScreen[str | None]):
    """Ends with the chosen label's name, or None. The first choice is the harmless one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("right", "app.focus_next", show=False),
        Binding("left", "app.focus_previous", show=False),
    ]
    DEFAULT_CSS = _BOX_CSS.format(name="ChoiceScreen")

    def __init__(self, title: str, text: str, choices: Sequence[tuple[str, str]]) -> None:
        """choices: (name, label) each."""
        super().__init__()
        self._title, self._text, self._choices = title, text, choices

    def compose(self) -> ComposeResult:
        """Text, then buttons."""
        with Vertical(id="question") as box:
            box.border_title = self._title
            box.border_subtitle = "Esc cancels"
            yield Static(Content(strip_control_characters(self._text)))
            with Horizontal():
                for name, label in self._choices:
                    yield Button(Content(label), id=name, compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Chosen."""
        self.dismiss(event.button.id)


class LineScreen(ModalScreen[str | None]):
    """Ends with what was typed, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]
    DEFAULT_CSS = _BOX_CSS.format(name="LineScreen")

    def __init__(self, title: str, text: str, value: str) -> None:
        super().__init__()
        self._title, self._text, self._value = title, text, value

    def compose(self) -> ComposeResult:
        """Text, then a line."""
        with Vertical(id="question") as box:
            box.border_title = self._title
            box.border_subtitle = "Enter accepts · Esc cancels"
            yield Static(Content(strip_control_characters(self._text)))
            yield Input(self._value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Typed."""
        self.dismiss(event.value.strip() or None)
