"""Noticing that the terminal is gone, where nothing sends a signal: a closed window in a container.

Textual goes on reading the end of its input then, as fast as it can, and waits for ever to write.
"""

from __future__ import annotations

import gc
import os
import select
import threading
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.widget import Widget

    from safesteer_edge.media.images import DecodedImage


# What a shell reports of a program that a hangup ended: 128 and SIGHUP.
_HANGUP_EXIT_CODE = 129


def leave_with_terminal(fd: int, save: Callable[[], None]) -> None:
    """End the process when the terminal of `fd` has gone, after `save`, which a thread calls.

    Nothing can be drawn any more, and the application may wait for that: so it is not asked.
    """
    if not hasattr(select, "poll"):  # Windows ends a program with its console
        return

    def wait() -> None:
        terminal = select.poll()
        terminal.register(fd, 0)  # an end is told in any case
        terminal.poll()
        try:
            save()
        finally:
            os._exit(_HANGUP_EXIT_CODE)

    threading.Thread(target=wait, name="terminal-watch", daemon=True).start()


# -- python's garbage collector, kept from stopping the chat while somebody types ------------------
# A frame that is painted makes some thousand objects that live until the next one, which the
# collector takes for a reason to walk through all that there is, four times a second while an
# answer streams: a tenth of a second each time (measured, 200,000 objects). So what was there at
# the start is left out of its rounds, the full ones are rare, and the chat asks for one when
# nobody waits.

_THRESHOLDS = (5_000, 10, 100)


def spare_pauses() -> None:
    """Let full rounds be rare in this process. What was imported lives as long as it does."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def collect_now() -> None:
    """A full round, where `spare_pauses` was called: some tens of milliseconds. Else nothing."""
    if gc.get_threshold() == _THRESHOLDS:
        gc.collect()


# -- the terminal's own graphics, where it has any: asked before Textual takes the terminal --------

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
