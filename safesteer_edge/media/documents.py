"""Documents as a prompt gets them: their text under their name, and pictures of their pages."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from safesteer_edge.errors import MediaError
from safesteer_edge.media.image_decoding import Picture

MAX_FILE_BYTES: Final = 20 * 1024 * 1024
MAX_CHARACTERS: Final = 100_000  # some 25,000 tokens
PDF_PACKAGE: Final = "pypdfium2"  # an extra's

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BINARY = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# Escape sequences of coloured logs lose their first character; PDFium marks hyphens by U+FFFE.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


@dataclass(frozen=True, slots=True, eq=False)
class DocumentPage:
    """is_pictured: there is more to it than text. picture: of the whole page, if it goes along."""

    text: str
    is_pictured: bool
    picture: Picture | None


def is_pdf(data: bytes) -> bool:
    """By its mark, which may stand behind some other bytes."""
    return b"%PDF-" in data[:1024]


def check_length(n_characters: int, what: str) -> None:
    """Raise MediaError for a text that is too long."""
    if n_characters > MAX_CHARACTERS:
        raise MediaError(
            f"{what} has more than {MAX_CHARACTERS} characters, the limit; attach a part of it"
        )


def text_document(data: bytes, *, file: str, name: str) -> str:
    """What the prompt says of a text file: UTF-8, or UTF-16 with its mark.

    file: for messages. name: for the prompt.
    Raises MediaError for anything else, what is empty and what is too long.
    """
    try:
        text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig")
        if _BINARY.search(text):
            raise ValueError("control characters")
    except ValueError as error:
        raise MediaError(
            f"cannot read {file}: it is neither a picture (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, "
            "HEIC), a sound (WAV, FLAC, MP3), a PDF, nor UTF-8 text; convert it first"
        ) from error
    check_length(len(text), f"file {file}")
    if not text.strip():
        raise MediaError(f"file {file} is empty; attach one with text in it")
    return _framed(name, _cleaned(text))


def pdf_document(pages: Sequence[DocumentPage], *, file: str, name: str) -> str:
    """What the prompt says of a PDF. Raises MediaError if nothing of it can be read or seen."""
    if not any(page.picture or page.text.strip() for page in pages):
        reason = (
            "only pictures, and this model cannot take pictures; choose one that can"
            if any(page.is_pictured for page in pages)
            else "no pictures either; attach another file"
        )
        raise MediaError(f"PDF {file} has no text, {reason}")
    told: list[str] = []
    for number, page in enumerate(pages, 1):
        told.append(f"[page {number} of {len(pages)}{_note(page)}]")
        told += filter(None, [_cleaned(page.text)])
    return _framed(name, "\n".join(told))


def _note(page: DocumentPage) -> str:
    if page.picture is not None:
        return ", see its picture"
    return ", with a picture that is not shown" if page.is_pictured else ""


def _framed(name: str, text: str) -> str:
    said = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return f"File {said}:\n{text}\nEnd of file {said}."


def _cleaned(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _NOT_TEXT.sub("", lines).strip("\n")
