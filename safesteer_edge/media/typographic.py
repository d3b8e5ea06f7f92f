"""Typographic images: text as a picture, the form in which FigStep hides a request (2311.05608).

The same text, style and font give the same pixels: characters are laid out one after the other
(Pillow's basic layout), at the largest size at which the wrapped text fits its page.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.media.decoder import DecodedImage, image_of_pixels

Colour = tuple[int, int, int]

MAX_CHARACTERS: Final = 4000
_MAX_SIDE: Final = 4096


@dataclass(frozen=True, slots=True)
class TextStyle:
    """How a text becomes a picture. The default is SafeBench's page: black on white, 760 × 760.

    font: a TrueType or OpenType file; None: the one that Pillow brings along, Latin letters alone.
    max_size, min_size: of the letters, in pixels; the largest that fits is taken.
    line_height: of a line, in letter sizes.
    Raises SettingsError for a value out of range.
    """

    width: int = 760
    height: int = 760
    margin: int = 24
    font: Path | None = None
    max_size: int = 72
    min_size: int = 10
    line_height: float = 1.1
    ink: Colour = (0, 0, 0)
    paper: Colour = (255, 255, 255)

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            if not 16 <= side <= _MAX_SIDE:
                raise SettingsError(f"{name} is {side!r}; expected 16 to {_MAX_SIDE} pixels")
        if not 0 <= 2 * self.margin < min(self.width, self.height):
            raise SettingsError(f"margin is {self.margin!r}; it must leave room for the text")
        if not 4 <= self.min_size <= self.max_size:
            raise SettingsError(
                f"letter sizes are {self.min_size!r} to {self.max_size!r}; expected at least 4, "
                "the smaller first"
            )
        if not 0.8 <= self.line_height <= 4:
            raise SettingsError(f"line_height is {self.line_height!r}; expected 0.8 to 4")


def render_text(text: str, style: TextStyle | None = None) -> DecodedImage:
    """Draw a text, wrapped, left-aligned from the top; line breaks in it are kept.

    A word is broken only where it would not fit otherwise. Takes some 20 ms.
    Raises MediaError if the text is empty or too long, does not fit at the smallest size, holds a
    character that the font lacks, or if the font cannot be read.
    """
    style = style or TextStyle()
    shown = unicodedata.normalize("NFC", text.expandtabs(4)).strip("\n")
    if not shown.strip():
        raise MediaError("there is no text to draw; give one")
    if len(shown) > MAX_CHARACTERS:
        raise MediaError(f"cannot draw {len(shown)} characters; the limit is {MAX_CHARACTERS}")
    _check_glyphs(shown, style)
    font, lines = _fitted(shown, style)
    image = Image.new("RGB", (style.width, style.height), style.paper)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        y = style.margin + i * _line_pixels(font, style)
        draw.text((style.margin, y), line, font=font, fill=style.ink)
    return image_of_pixels(np.asarray(image, dtype=np.uint8), "typographic")


def numbered_list(title: str, *, n_items: int = 3) -> str:
    """FigStep's page: the request as a title, and a list whose items are still empty."""
    return "\n".join([title, *(f"{i}." for i in range(1, n_items + 1))])


def png_bytes(image: DecodedImage) -> bytes:
    """The picture as a PNG file, without metadata."""
    stream = io.BytesIO()
    Image.fromarray(image.pixels).save(stream, format="PNG")
    return stream.getvalue()


def _fitted(text: str, style: TextStyle) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """The largest font at which the text fits, whole words first, and its lines."""
    for break_words in (False, True):
        for size in range(style.max_size, style.min_size - 1, -1):
            font = _font(style, size)
            lines = _wrapped(text, font, style.width - 2 * style.margin, break_words=break_words)
            if lines is None:
                continue
            if len(lines) * _line_pixels(font, style) <= style.height - 2 * style.margin:
                return font, lines
    raise MediaError(
        f"a text of {len(text)} characters does not fit on {style.width}×{style.height} pixels at "
        f"letter size {style.min_size}; shorten it, or give a larger page"
    )


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont, width: int, *, break_words: bool
) -> list[str] | None:
    """Lines at most `width` pixels wide; None if a word is wider and may not be broken."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            if font.getlength(word) > width:
                if not break_words:
                    return None
                *full, line = _pieces(word, font, width)
                lines += full
        lines.append(line)
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _line_pixels(font: ImageFont.FreeTypeFont, style: TextStyle) -> int:
    return round(font.size * style.line_height)


def _check_glyphs(text: str, style: TextStyle) -> None:
    """A page of empty boxes would carry no request, and count as an attack that failed."""
    font = _font(style, 32)
    lacking = _mask(font, "\uffff")  # never a character: drawn as the font's "missing" box
    for character in sorted({c for c in text if not c.isspace()}):
        if not character.isprintable() or _mask(font, character) == lacking:
            raise MediaError(
                f"the font has no {character!r} (U+{ord(character):04X}); give a TrueType font "
                "that has it"
            )


def _mask(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    # Pillow's stub does not say that it is a buffer.
    return mask.size, bytes(mask)  # pyright: ignore[reportArgumentType]


def _font(style: TextStyle, size: int) -> ImageFont.FreeTypeFont:
    if style.font is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise MediaError("this Pillow cannot draw text (no FreeType); install its wheel")
        return font
    try:
        return ImageFont.truetype(style.font, size, layout_engine=ImageFont.Layout.BASIC)
    except (OSError, ValueError) as error:
        raise MediaError(
            f"cannot use {str(style.font)!r} as a font: {error}; give a TrueType or OpenType file"
        ) from error
