"""What Textual does not do for its terminal: pastes taken whole, pictures, a window that vanishes.

All but the editor is arranged before Textual takes the terminal.
"""

from __future__ import annotations

import gc
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message

from safesteer_edge.errors import InputError
from safesteer_edge.formats.display_text import strip_control_characters

if TYPE_CHECKING:
    from textual.widget import Widget

    from safesteer_edge.media.decoder import DecodedImage


# -- pastes ----------------------------------------------------------------------------------------

# More than any context holds, and short enough for the engine's pipe however it is escaped.
_MAX_CHARACTERS = 4 << 20
_CUT = f"\n[the paste was cut here, at {_MAX_CHARACTERS:,} characters]\n"
# A paste that is silent for so long has lost its end; what came of it is shown.
_STALLED_S = 2.0
# Then a key ends it: a person presses one at a time, and none is longer than this.
_LONGEST_KEY = 16
# Nobody presses a key so soon after a paste: it is a part of it, behind an end marker in its text.
_TYPED_AFTER_S = 0.05


class WholePasteParser(XTermParser):
    """Textual's parser for all but pastes: those come without control codes, lines ended by \\n.

    That one leaves a paste at its first ESC, and the rest arrives as keys: a coloured log sends
    itself line by line. Here the text between the markers never reaches it.
    """

    def __init__(self, debug: bool = False) -> None:
        self._is_in_paste = False
        self._was_shown = False  # what came of the paste, while its end did not
        self._pieces: list[str] = []
        self._n_heard = 0
        self._tail = ""  # the end of a read may cut a marker in two
        self._heard_s = 0.0
        self._untyped_until_s = 0.0
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        """Messages of what a read brought. data: empty at the input's end."""
        if self._has_stalled() and self._is_key(data):
            self._leave_paste()
        self._heard_s = time.monotonic()
        if not data:
            yield from super().feed(data)
        while data:
            if self._is_in_paste:
                data = self._keep(data)
                if not self._is_in_paste:
                    self._untyped_until_s = self._heard_s + _TYPED_AFTER_S
                    paste = self._take_paste()
                    if paste.text or not self._was_shown:
                        yield paste
            else:
                n_before = self._n_before_paste(data)
                yield from self._typed(data[:n_before])
                data = data[n_before:]

    def tick(self) -> Iterable[Message]:
        """Messages of time that passes."""
        yield from super().tick()
        if (self._n_heard or self._tail) and self._has_stalled():
            self._was_shown = True
            yield self._take_paste()

    def _typed(self, data: str) -> Iterable[Message]:
        is_untyped = self._heard_s < self._untyped_until_s
        if is_untyped:
            self._untyped_until_s = self._heard_s + _TYPED_AFTER_S
        for message in super().feed(data):
            is_enter = isinstance(message, events.Key) and message.key == "enter"
            yield events.Key("ctrl+j", "\n") if is_untyped and is_enter else message

    def _n_before_paste(self, data: str) -> int:
        """Characters up to a paste's text; all if none begins."""
        seen = self._tail + data
        at = seen.find(BRACKETED_PASTE_START)
        if at < 0:
            self._tail = seen[1 - len(BRACKETED_PASTE_START) :]
            return len(data)
        n_before = at + len(BRACKETED_PASTE_START) - len(self._tail)
        self._is_in_paste, self._was_shown, self._tail = True, False, ""
        return n_before

    def _keep(self, data: str) -> str:
        """Keep a part of a paste; returns what stands behind its end."""
        seen = self._tail + data
        text, end, rest = seen.partition(BRACKETED_PASTE_END)
        if end:
            self._leave_paste()
        else:
            n_settled = max(0, len(seen) + 1 - len(BRACKETED_PASTE_END))
            text, self._tail = seen[:n_settled], seen[n_settled:]
        self._pieces.append(text[: max(0, _MAX_CHARACTERS - self._n_heard)])
        self._n_heard += len(text)
        return rest

    def _leave_paste(self) -> None:
        """From here on the parser that this one extends hears keys again."""
        self._is_in_paste, self._tail = False, ""
        for _ in super().feed(BRACKETED_PASTE_END):
            pass  # it heard an empty paste

    def _take_paste(self) -> events.Paste:
        text = "".join((*self._pieces, self._tail))
        if len(text) < self._n_heard:
            text += _CUT
        self._pieces, self._n_heard, self._tail = [], 0, ""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        return events.Paste(strip_control_characters(text))

    def _has_stalled(self) -> bool:
        return self._is_in_paste and time.monotonic() - self._heard_s > _STALLED_S

    def _is_key(self, data: str) -> bool:
        return len(data) <= _LONGEST_KEY and BRACKETED_PASTE_END not in self._tail + data


def take_pastes_whole() -> None:
    """Give Textual's driver this parser, before the application runs: it has no setting for one."""
    if sys.platform == "win32":
        from textual.drivers import win32 as driver
    else:
        from textual.drivers import linux_driver as driver

        # A byte that is no UTF-8, as in an old log, would end the application.
        lenient = partial(getincrementaldecoder("utf-8"), "replace")
        driver.getincrementaldecoder = lambda _: lenient  # pyright: ignore[reportPrivateImportUsage]  # its own import
    driver.XTermParser = WholePasteParser  # pyright: ignore[reportPrivateImportUsage]  # its own import


# -- a terminal that is gone -----------------------------------------------------------------------

# What a shell reports of a program that a hangup ended: 128 and SIGHUP.
_HANGUP_EXIT_CODE = 129


def leave_with_terminal(fd: int, save: Callable[[], None]) -> None:
    """End the process when the terminal of `fd` has gone, after `save`, which a thread calls.

    Nothing sends a signal where a window is closed in a container: Textual goes on reading the end
    of its input then, as fast as it can, and waits for ever to write. So it is not asked.
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


# -- the person's own editor -----------------------------------------------------------------------


def written_in_editor(text: str) -> str:
    """The text as $VISUAL or $EDITOR leaves it, without control codes. The terminal must be free.

    Raises InputError where there is none, or where it fails.
    """
    default = "notepad" if sys.platform == "win32" else "vi"
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or default
    previous = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl+C is the editor's
    try:
        with tempfile.TemporaryDirectory(prefix="safesteer-edge-") as folder:
            path = Path(folder) / "message.md"
            path.write_text(text, "utf-8")
            subprocess.run([*shlex.split(editor), str(path)], check=True)
            return strip_control_characters(path.read_text("utf-8")).rstrip("\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"the editor {editor!r} failed: {error}; set VISUAL or EDITOR to another one"
        ) from error
    finally:
        signal.signal(signal.SIGINT, previous)


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


def find_native_pictures() -> Callable[[DecodedImage], Widget] | None:
    """What makes a widget of a picture by the terminal's own graphics; None: half blocks it is."""
    env = os.environ
    program, term = env.get("TERM_PROGRAM", ""), env.get("TERM", "")
    has_name = program in _PROGRAMS or any(each in term for each in _TERMS)
    if not (has_name or "KITTY_WINDOW_ID" in env or "KONSOLE_VERSION" in env):
        return None
    if "TMUX" in env or term.startswith("screen"):
        return None
    from textual_image.renderable import Image as Renderable
    from textual_image.renderable import SixelImage, TGPImage

    if Renderable not in (SixelImage, TGPImage):
        return None
    from textual_image.widget import Image

    # As the simplest of file formats, PPM, which the widget reads.
    return lambda image: Image(
        BytesIO(b"P6 %d %d 255\n" % (image.width, image.height) + image.pixels.tobytes())
    )
