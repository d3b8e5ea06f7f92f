"""Choosing a picture: folders on the left, the picture under the cursor on the right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import DirectoryTree, Input, Static, Tree

from safesteer_edge.media.media_file import kind_of
from safesteer_edge.tui.typed_paths import has_known_name, sign_of, split_media_paths
from safesteer_edge.tui.widgets.attachments import Picture


class _MediaTree(DirectoryTree):
    """Folders, and files that a message can carry; hidden ones are left out."""

    ICON_NODE = "▸ "
    ICON_NODE_EXPANDED = "▾ "
    ICON_FILE = "▣ "

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        return [
            p for p in paths if not p.name.startswith(".") and (p.is_dir() or has_known_name(p))
        ]


class PicturePicker(ModalScreen[Path | None]):
    """Ends with the chosen file, or None."""

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
        """A path to type, a tree, a preview."""
        with Vertical(id="picker") as box:
            box.border_title = "Attach a file"
            box.border_subtitle = "Enter attaches · Esc cancels · Tab to the path"
            yield Input(placeholder="path of a file, or choose below", id="path")
            with Horizontal():
                yield _MediaTree(self._folder)
                yield Vertical(Static(Content("no file yet")), id="preview")

    def on_mount(self) -> None:
        """Begin in the tree."""
        self.query_one(_MediaTree).focus()

    async def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[object]) -> None:
        """Show the picture under the cursor."""
        path = getattr(event.node.data, "path", None)
        preview = self.query_one("#preview")
        await preview.remove_children()
        if not isinstance(path, Path) or path.is_dir():
            await preview.mount(Static(Content("choose a picture to see it here")))
        elif kind_of(path) == "image":
            await preview.mount(Picture(path, max_columns=32, max_rows=14))
        else:
            await preview.mount(Static(Content(f"{sign_of(path)} a {kind_of(path)}")))

    def on_directory_tree_file_selected(self, event: DirectoryTree.FileSelected) -> None:
        """Enter or a click on a file."""
        self.dismiss(event.path)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A typed path: a folder is opened, a file is chosen."""
        _rest, paths = split_media_paths(event.value)
        if paths:
            self.dismiss(paths[0])
            return
        folder = Path(event.value).expanduser()
        if folder.is_dir():
            self.query_one(_MediaTree).path = folder
            self.query_one(_MediaTree).focus()
        else:
            self.notify(f"there is no such file at {event.value!r}", severity="error", markup=False)
