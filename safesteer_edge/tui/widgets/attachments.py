"""Files of a message: words for each, small views of the pictures, and those that go next.

A picture is drawn by the terminal's own graphics where it has any, else by half blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from safesteer_edge.errors import MediaError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.prompt import media_line
from safesteer_edge.tui.attached_files import sign_of
from safesteer_edge.tui.shown_turn import ShownTurn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from safesteer_edge.media.decoder import DecodedImage


_MAX_PIXELS = 1_000_000  # more than any view of a picture shows


def media_lines(turn: ShownTurn) -> Content:
    """Names of the files with a sign of what they are; sizes and tokens, once they are known."""
    names = turn.media_names or tuple(path.name for path in turn.files)
    shown = [
        f"{sign_of(path)} {strip_control_characters(name)}"
        for path, name in zip(turn.files, names, strict=False)
    ]
    if not turn.media:
        shown += [f"✗ {strip_control_characters(name)} is lost" for name in turn.lost]
        return Content("   ".join(shown))
    signs = {"image": "▣", "audio": "♪"}
    media = [f"{signs[each.kind]} {media_line(each)}" for each in turn.media]
    return Content("\n".join([*media, *shown[len(shown) - len(turn.documents) :]]))


@dataclass
class AttachmentRemoved(Message):
    """The person takes a file off again. index: which one; -1: the last."""

    index: int


class _Chip(Static):
    DEFAULT_CSS = """
    _Chip { width: auto; height: 1; background: $panel; padding: 0 1; margin: 0 1 0 0;
            &:hover { background: $primary; color: $background; } }
    """

    def __init__(self, index: int, text: str) -> None:
        super().__init__(Content(text))
        self._index = index
        self.tooltip = "click to remove"

    def on_click(self) -> None:
        self.post_message(AttachmentRemoved(self._index))


class AttachmentBar(Horizontal):
    """Files that the next message carries; hidden while there are none."""

    DEFAULT_CSS = """
    AttachmentBar { height: 1; padding: 0 2; display: none; &.-shown { display: block; }
                    layout: horizontal;
                    & .hint { width: auto; color: $foreground 60%; } }
    """

    async def show(self, paths: Sequence[Path]) -> None:
        self.set_class(bool(paths), "-shown")
        await self.remove_children()
        chips = [_Chip(i, f"{sign_of(path)} {_short(path)} ×") for i, path in enumerate(paths)]
        await self.mount_all(
            [*chips, Static(Content("Backspace removes the last"), classes="hint")]
        )


def _short(path: Path) -> str:
    name = strip_control_characters(path.name)
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"


# -- small views of pictures -----------------------------------------------------------------------


class Picture(Container):
    """Loads the picture on a thread, then shows it; says so if it cannot."""

    DEFAULT_CSS = """
    Picture { height: auto; width: 1fr; padding: 0 1; margin: 0 0 1 0;
              & .problem { color: $text-error; height: auto; width: 1fr; } }
    """

    def __init__(self, path: Path, *, max_columns: int = 36, max_rows: int = 10) -> None:
        super().__init__()
        self._path = path
        self._limits = (max_columns, max_rows)

    @work
    async def on_mount(self) -> None:
        try:
            image = await asyncio.to_thread(_load, self._path)
        except MediaError as error:
            await self.mount(Static(Content(str(error)), classes="problem"))
            return
        columns, rows = fitted(image.width, image.height, *self._limits)
        make_native = getattr(self.app, "native_picture", None)
        view: Widget = make_native(image) if make_native else HalfBlocks(image, columns, rows)
        view.styles.width, view.styles.height = columns, rows
        await self.mount(view)


class HalfBlocks(Static):
    """A picture of two pixels a cell: ▀ with a colour above and one below."""

    ALLOW_SELECT = False

    def __init__(self, image: DecodedImage, columns: int, rows: int) -> None:
        pixels = shrunk(image.pixels, columns, rows * 2).tolist()
        lines = [
            Content.assemble(*(_cell(*each) for each in zip(above, below, strict=True)))
            for above, below in zip(pixels[::2], pixels[1::2], strict=True)
        ]
        super().__init__(Content("\n").join(lines))


def fitted(width: int, height: int, max_columns: int, max_rows: int) -> tuple[int, int]:
    """Columns and rows of a picture of that size; a cell is about twice as high as wide."""
    scale = min(max_columns / width, 2 * max_rows / height, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def shrunk(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture at this size, each pixel the mean of those that it stands for."""
    import numpy as np

    means = pixels
    for axis, size in enumerate((height, width)):
        edges = np.linspace(0, pixels.shape[axis], size + 1).astype(int)
        parts = (
            means.take(range(low, max(low + 1, high)), axis).mean(axis)
            for low, high in pairwise(edges)
        )
        means = np.stack(list(parts), axis)
    return means.astype(np.uint8)


def _cell(above: Sequence[int], below: Sequence[int]) -> tuple[str, str]:
    colours = ("#{:02x}{:02x}{:02x}".format(*each) for each in (above, below))
    return "▀", " on ".join(colours)


def _load(path: Path) -> DecodedImage:
    # Deferred: Pillow and NumPy, which the first frame must not wait for.
    from safesteer_edge.media.decoder import MediaDecoder
    from safesteer_edge.media.image_decoding import ImageFit

    # In a process of its own: a file may hang or crash its decoder.
    with MediaDecoder(ImageFit(max_pixels=_MAX_PIXELS)) as decoder:
        return decoder.load_image(path)
