"""A small view of a picture: the terminal's own graphics where it has any, else half blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual import work
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from safesteer_edge.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from safesteer_edge.media.images import DecodedImage


MAX_COLUMNS, MAX_ROWS = 36, 10
_MAX_PIXELS = 1_000_000  # more than any view of it shows


class Picture(Container):
    """Loads the picture on a thread, then shows it; says so if it cannot."""

    DEFAULT_CSS = """
    Picture { height: auto; width: 1fr; padding: 0 1; margin: 0 0 1 0;
              & .problem { color: $text-error; height: auto; width: 1fr; } }
    """

    @dataclass
    class _Loaded(Message):
        """image: the picture, or the sentence that says why there is none."""

        image: DecodedImage | str

    def __init__(
        self, path: Path, *, max_columns: int = MAX_COLUMNS, max_rows: int = MAX_ROWS
    ) -> None:
        super().__init__()
        self._path = path
        self._limits = (max_columns, max_rows)

    def compose(self) -> ComposeResult:
        """Nothing yet."""
        yield from ()

    def on_mount(self) -> None:
        """Begin to load."""
        self._load()

    @work(thread=True)
    def _load(self) -> None:
        # Deferred: Pillow and NumPy, which the first frame must not wait for.
        from safesteer_edge.media.decoder import MediaDecoder
        from safesteer_edge.media.image_decoding import ImageFit

        try:
            # In a process of its own: a file may hang or crash its decoder.
            with MediaDecoder(ImageFit(max_pixels=_MAX_PIXELS)) as decoder:
                self.post_message(self._Loaded(decoder.load_image(self._path)))
        except MediaError as error:
            self.post_message(self._Loaded(str(error)))

    async def on_picture__loaded(self, message: _Loaded) -> None:
        """Show it."""
        image = message.image
        if isinstance(image, str):
            await self.mount(Static(Content(image), classes="problem"))
            return
        columns, rows = fitted(image.width, image.height, *self._limits)
        make_native = getattr(self.app, "native_picture", None)
        view: Widget = make_native(image) if make_native else HalfBlocks(image, columns, rows)
        view.styles.width, view.styles.height = columns, rows
        await self.mount(view)


class HalfBlocks(Widget):
    """A picture of two pixels a cell: ▀ with a colour above and one below."""

    def __init__(self, image: DecodedImage, columns: int, rows: int) -> None:
        super().__init__()
        pixels = shrunk(image.pixels, columns, rows * 2)
        self._strips = [_strip(pixels[2 * row], pixels[2 * row + 1]) for row in range(rows)]

    def render_line(self, y: int) -> Strip:
        """One row of cells."""
        if y >= len(self._strips):
            return Strip.blank(self.size.width)
        return self._strips[y].crop(0, self.size.width)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """As many cells as there are pixels in a row."""
        return self._strips[0].cell_length if self._strips else 0


def fitted(width: int, height: int, max_columns: int, max_rows: int) -> tuple[int, int]:
    """Columns and rows of a picture of that size; a cell is about twice as high as wide."""
    scale = min(max_columns / width, 2 * max_rows / height, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def shrunk(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The picture at this size, each pixel the mean of those that it stands for."""
    import numpy as np

    rows = np.linspace(0, pixels.shape[0], height + 1).astype(int)
    columns = np.linspace(0, pixels.shape[1], width + 1).astype(int)
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        band = pixels[rows[y] : max(rows[y] + 1, rows[y + 1])].mean(axis=0)
        for x in range(width):
            out[y, x] = band[columns[x] : max(columns[x] + 1, columns[x + 1])].mean(axis=0)
    return out


def _strip(above: NDArray[np.uint8], below: NDArray[np.uint8]) -> Strip:
    return Strip(
        [
            Segment("▀", Style(color=_colour(high), bgcolor=_colour(low)))
            for high, low in zip(above.tolist(), below.tolist(), strict=True)
        ]
    )


def _colour(rgb: list[int]) -> str:
    red, green, blue = rgb
    return f"#{red:02x}{green:02x}{blue:02x}"
