"""The terminal's own graphics, where it has any: asked before Textual takes the terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.widget import Widget

    from safesteer_edge.media.images import DecodedImage

# Asking costs a tenth of a second where nobody answers, and a terminal that does not know the
# question may print it: only those are asked that are known to draw pictures.
_PROGRAMS = ("ghostty", "WezTerm", "iTerm.app", "kitty", "mintty", "rio", "contour")
_TERMS = ("kitty", "ghostty", "foot", "mlterm", "contour", "sixel", "wezterm")


def may_draw_pictures() -> bool:
    """True if the terminal's name is one of those that draw pictures."""
    if "TMUX" in os.environ or os.environ.get("TERM", "").startswith("screen"):
        return False
    program, term = os.environ.get("TERM_PROGRAM", ""), os.environ.get("TERM", "")
    has_name = program in _PROGRAMS or any(each in term for each in _TERMS)
    return has_name or "KITTY_WINDOW_ID" in os.environ or "KONSOLE_VERSION" in os.environ


def find_native_pictures() -> Callable[[DecodedImage], Widget] | None:
    """What makes a widget of a picture by the terminal's own graphics; None: half blocks it is."""
    if not may_draw_pictures():
        return None
    from textual_image.renderable import Image as Renderable
    from textual_image.renderable import SixelImage, TGPImage

    if Renderable not in (SixelImage, TGPImage):
        return None
    from textual_image.widget import Image

    return lambda image: Image(as_ppm(image))


def as_ppm(image: DecodedImage) -> BytesIO:
    """The picture as the simplest of file formats, which the widget reads."""
    header = b"P6 %d %d 255\n" % (image.width, image.height)
    return BytesIO(header + image.pixels.tobytes())
