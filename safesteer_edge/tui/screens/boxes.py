"""A small box that asks: a choice between buttons, or a line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static, TextArea

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.tui.commands.table import COMMANDS

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


# -- shown once, before the first chat -------------------------------------------------------------

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


# -- keys and commands -----------------------------------------------------------------------------

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


# -- A long text to read: only the lines in view are ever drawn, and the first are there at once ---

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
