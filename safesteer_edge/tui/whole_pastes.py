"""Pastes taken whole from what the terminal sends, whatever stands in them.

Textual's parser leaves a paste at its first ESC, and the rest arrives as keys: a coloured log sends
itself line by line. Here the text between the markers never reaches that parser.
"""

from __future__ import annotations

import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Iterable
from functools import partial

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message

from safesteer_edge.formats.display_text import strip_control_characters

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
    """Textual's parser for all but pastes: those come without control codes, lines ended by \\n."""

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
