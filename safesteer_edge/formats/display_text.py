"""Text made safe for a terminal: no control characters, escape sequences or bidi overrides.

A model's answer, a file name and a model's metadata can all carry sequences that retitle the
window, write to the clipboard (OSC 52), hide links (OSC 8) or reorder what is read.
"""

from __future__ import annotations

import re
from typing import Literal

# Embeddings and overrides (U+202A–202E) and isolates (U+2066–2069) make text read in another
# order than it is stored. The plain marks (U+200E, U+200F, U+061C) are part of ordinary Arabic
# and Hebrew, and stay. A lone surrogate cannot be written to a UTF-8 terminal at all.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Openers of a string that runs to BEL or ST: OSC, DCS, SOS, PM, APC, after ESC and as one C1.
_STRING_OPENERS_7BIT = frozenset("]PX^_")
_STRING_OPENERS_8BIT = frozenset("\x9d\x90\x98\x9e\x9f")
# A string that is never closed would hide the rest of the answer: it also ends at a line break,
# and at this length (xterm's own titles and links are shorter).
_MAX_STRING_LENGTH = 1024

_State = Literal["text", "escape", "csi", "string", "string_escape"]


class ControlCharacterFilter:
    """Remove control characters from a text that comes in pieces, sequences cut across them too.

    Nothing is held back: what `feed` was given is either returned at once or dropped.
    """

    def __init__(self) -> None:
        self._state: _State = "text"
        self._string_length = 0

    def feed(self, text: str) -> str:
        """Return the safe part of the next piece: tab and line feed stay, other controls go."""
        if self._state == "text" and not _UNSAFE.search(text):
            return text
        return "".join(self._filtered(character) for character in text)

    def _filtered(self, character: str) -> str:
        if self._state == "string" or self._state == "string_escape":
            return self._inside_string(character)
        if self._state == "escape":
            return self._after_escape(character)
        if self._state == "csi" and " " <= character <= "?":
            return ""  # parameter or intermediate byte
        if self._state == "csi" and "@" <= character <= "~":
            self._state = "text"  # final byte
            return ""
        self._state = "text"
        return self._plain(character)

    def _plain(self, character: str) -> str:
        if not _UNSAFE.match(character):
            return character
        if character == "\x1b":
            self._state = "escape"
        elif character == "\x9b":
            self._state = "csi"
        elif character in _STRING_OPENERS_8BIT:
            self._open_string()
        elif "\ud800" <= character <= "\udfff":
            return "\ufffd"
        return ""

    def _after_escape(self, character: str) -> str:
        if character == "[":
            self._state = "csi"
            return ""
        if character in _STRING_OPENERS_7BIT:
            self._open_string()
            return ""
        if " " <= character <= "/":
            return ""  # intermediate byte: the sequence goes on
        self._state = "text"
        return "" if "0" <= character <= "~" else self._plain(character)

    def _open_string(self) -> None:
        self._state = "string"
        self._string_length = 0

    def _inside_string(self, character: str) -> str:
        if self._state == "string_escape":
            # ESC \ closes the string; any other ESC sequence ends it too, and begins anew.
            self._state = "escape"
            return self._after_escape(character)
        self._string_length += 1
        if character == "\x1b":
            self._state = "string_escape"
        elif character in "\a\x9c":
            self._state = "text"
        elif character == "\n" or self._string_length > _MAX_STRING_LENGTH:
            self._state = "text"
            return self._plain(character)
        return ""


def strip_control_characters(text: str) -> str:
    """Return a whole text without control characters, as `ControlCharacterFilter` gives it."""
    return ControlCharacterFilter().feed(text)
