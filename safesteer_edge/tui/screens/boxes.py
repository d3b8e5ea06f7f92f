"""Boxes over the chat: a choice, a line to type, help, a text to read, a file to attach."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, DirectoryTree, Input, Static, TextArea, Tree
from textual.widgets.directory_tree import DirEntry
from textual.widgets.tree import TreeNode

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.media.media_file import kind_of
from safesteer_edge.tui.attached_files import has_known_name, sign_of, split_media_paths
from safesteer_edge.tui.commands.table import COMMANDS
from safesteer_edge.tui.guard_words import size_for_people
from safesteer_edge.tui.widgets.attachments import Picture


class _Question(ModalScreen[str | None]):
    """A small box that asks. Ends with the answer, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]
    HINT = "Esc cancels"
    DEFAULT_CSS = """
    _Question {
        align: center middle; background: $background 60%;
        & #question {
            width: 68; max-width: 92%; height: auto; max-height: 90%; padding: 1 2;
            border: round $primary; background: $surface;
        }
        & Static { height: auto; margin: 0 0 1 0; }
        & Horizontal { height: auto; }
        & Button { margin: 0 2 0 0; padding: 0 1; min-width: 8; max-width: 100%; height: auto; }
        & Input { border: round $border; height: 3; &:focus { border: round $primary; } }
    }
    """

    def __init__(self, title: str, text: str, answer: Widget) -> None:
        """answer: what it is given by."""
        super().__init__()
        self._title, self._text, self._answer = title, text, answer

    def compose(self) -> ComposeResult:
        with Vertical(id="question") as box:
            box.border_title = self._title
            box.border_subtitle = self.HINT
            yield Static(Content(strip_control_characters(self._text)))
            yield self._answer


class ChoiceScreen(_Question):
    """A choice between buttons; ends with the name of one. The first choice is the harmless one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,down", "app.focus_next", show=False),
        Binding("left,up", "app.focus_previous", show=False),
    ]

    def __init__(self, title: str, text: str, choices: Sequence[tuple[str, str]]) -> None:
        """choices: (name, label) each."""
        buttons = (
            Button(Content(label), id=name, compact=True, action=f"screen.dismiss({name!r})")
            for name, label in choices
        )
        super().__init__(title, text, Horizontal(*buttons))
        self._width = sum(len(label) + 4 for _, label in choices)

    def on_resize(self) -> None:
        """Below each other, where they do not fit beside each other."""
        fits = self._width <= self.query_one("#question").content_size.width
        self._answer.styles.layout = "horizontal" if fits else "vertical"


class LineScreen(_Question):
    """A line to type."""

    HINT = "Enter accepts · Esc cancels"

    def __init__(self, title: str, text: str, value: str) -> None:
        super().__init__(title, text, Input(value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)


# -- keys and commands -----------------------------------------------------------------------------

_KEYS = (
    ("Enter", "send"),
    ("Ctrl+J, Shift+Enter", "new line (in any terminal: \\ and then Enter)"),
    ("Esc", "stop the answer, or close what is open"),
    ("Up, Down", "earlier messages, from the first or last line of the input"),
    ("Tab, Shift+Tab", "select an answer; the keys that act on it appear below it"),
    ("Page Up, wheel", "scroll the chat"),
    ("Ctrl+C", "copy the selected text, or stop the answer"),
    ("Ctrl+V, drop", "paste text, a picture or the path of a file"),
    ("Ctrl+G", "write the message in your editor ($VISUAL or $EDITOR)"),
    ("Ctrl+P", "menu of all commands"),
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
        with Vertical() as box:
            box.border_title = f"The whole answer, {self._n_lines:,} lines"
            box.border_subtitle = "↑↓ Page Up, Page Down, Ctrl+Home · Ctrl+C copies · Esc closes"
            yield TextArea("".join(self._pieces[:1]), read_only=True, soft_wrap=True)

    @work
    async def on_mount(self) -> None:
        """Add the rest soon."""
        area = self.query_one(TextArea)
        for piece in self._pieces[1:]:
            await asyncio.sleep(_PIECE_PAUSE_S)
            area.insert(piece, area.document.end)


# -- choosing a file: folders on the left, the picture under the cursor on the right ---------------


class _MediaTree(DirectoryTree):
    """Folders, and files that a message can carry; hidden ones are left out.

    words: all of which a file's name has.
    """

    words: Sequence[str] = ()

    ICON_NODE = "▸ "
    ICON_NODE_EXPANDED = "▾ "
    ICON_FILE = "▣ "

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [
            path
            for path in paths
            if not path.name.startswith(".")
            and (path.is_dir() or (has_known_name(path) and self._has_words(path)))
        ]

    def render_label(self, node: TreeNode[DirEntry], base_style: Style, style: Style) -> Text:
        """The name, and of a file its size."""
        label = super().render_label(node, base_style, style)
        if node.data is not None and not node.allow_expand:
            label.append(f"  {_size_of(node.data.path)}", "dim")
        return label

    def _has_words(self, path: Path) -> bool:
        return all(word in path.name.casefold() for word in self.words)


def _size_of(path: Path) -> str:
    try:
        return size_for_people(path.stat().st_size)
    except OSError:  # it has gone
        return ""


class PicturePicker(ModalScreen[Path | None]):
    """Ends with the chosen file, or None."""

    AUTO_FOCUS = "_MediaTree"

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    DEFAULT_CSS = """
    PicturePicker {
        align: center middle; background: $background 60%;
        & #picker {
            width: 92%; max-width: 110; height: 90%; max-height: 32;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & Input { border: round $border; height: 3; background: $surface;
                  &:focus { border: round $primary; } }
        & Horizontal { height: 1fr; }
        & DirectoryTree { width: 1fr; background: $surface; scrollbar-size-vertical: 1; }
        & #preview { width: 42; padding: 0 1; height: 1fr; }
        &.-narrow #preview { width: 34; }
    }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  # Textual's own type

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def compose(self) -> ComposeResult:
        with Vertical(id="picker") as box:
            box.border_title = "Attach a file"
            box.border_subtitle = "Enter attaches · Esc cancels"
            yield Input(
                placeholder="type to filter, or give a path", id="path", select_on_focus=False
            )
            with Horizontal():
                yield _MediaTree(self._folder)
                yield Vertical(id="preview")

    def on_key(self, event: events.Key) -> None:
        """What is typed over the tree filters it; Down in the filter goes to the tree."""
        line, tree = self.query_one(Input), self.query_one(_MediaTree)
        if self.focused is tree and event.is_printable and event.character != " ":
            line.focus()
            line.insert_text_at_cursor(event.character or "")
        elif self.focused is line and event.key == "down":
            tree.focus()
        else:
            return
        event.stop()
        event.prevent_default()

    @work(exclusive=True)
    async def on_input_changed(self, event: Input.Changed) -> None:
        """Show the files that have these words in their names, unless it is a path."""
        tree = self.query_one(_MediaTree)
        words = [] if _looks_like_path(event.value) else event.value.casefold().split()
        if words != list(tree.words):
            tree.words = words
            await tree.reload()
            first = next((node for node in tree.root.children if not node.allow_expand), None)
            tree.move_cursor(first)

    async def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[object]) -> None:
        path = getattr(event.node.data, "path", None)
        preview = self.query_one("#preview")
        await preview.remove_children()
        if not isinstance(path, Path) or path.is_dir():
            await preview.mount(Static(Content("choose a file to preview it")))
        elif kind_of(path) == "image":
            await preview.mount(Picture(path, max_columns=32, max_rows=14))
        else:
            text = f"{sign_of(path)} {kind_of(path)}, {_size_of(path)}"
            await preview.mount(Static(Content(text)))

    def on_directory_tree_file_selected(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(event.path)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        _rest, paths = split_media_paths(event.value)
        node = self.query_one(_MediaTree).cursor_node
        chosen = node.data.path if node is not None and node.data is not None else None
        if paths:
            self.dismiss(paths[0])
            return
        if not _looks_like_path(event.value) and chosen is not None and chosen.is_file():
            self.dismiss(chosen)
            return
        folder = Path(event.value).expanduser()
        if folder.is_dir():
            self.query_one(_MediaTree).path = folder
            self.query_one(_MediaTree).focus()
        else:
            self.notify(f"no file found: {event.value!r}", severity="error", markup=False)


def _looks_like_path(typed: str) -> bool:
    return typed.startswith("~") or "/" in typed or os.sep in typed
