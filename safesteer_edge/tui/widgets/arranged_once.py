"""Sparing Textual a second arrangement of the whole screen whenever a text has grown.

It asks for one where the size of what is inside a widget changes, which matters where that scrolls
alone, and there the scroll bars ask for it themselves.
"""

from __future__ import annotations

from textual.geometry import Size
from textual.reactive import Reactive


def arranged_once() -> Reactive[Size]:
    """What a widget's class has as its `virtual_size`."""
    return Reactive(Size(0, 0), layout=False, repaint=False)
