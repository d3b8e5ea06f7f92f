"""Bytes of a PDF to the text of its pages, and pictures of those that carry any, by PDFium.

Runs in a decoding process. Text that lies outside a page, where nobody sees it, is left out.
"""

from __future__ import annotations

import codecs
import math
from typing import Any, Final

import pypdfium2
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_PAGEOBJ_IMAGE

from safesteer_edge.errors import MediaError
from safesteer_edge.media.documents import DocumentPage, check_length, pdf_document
from safesteer_edge.media.image_decoding import MAX_ASPECT_RATIO, ImageFit, Picture, fit_image
from safesteer_edge.media.media_file import Answer, answers

MAX_PAGES: Final = 50
MAX_PICTURES: Final = 8
_MAX_PIXELS: Final = 2_500_000  # eight of them fit into one answer
_SCALE: Final = 2.0  # pixels a point: 144 dpi
_MIN_SHARE: Final = 0.02  # of a page that a picture covers: a logo on every page is none


def document_decoder(_: dict[str, Any]) -> Answer:
    """What decodes in a process of its own, the last of what it needs read from the disk."""
    with pypdfium2.PdfDocument.new() as blank:
        page = blank.new_page(72, 72)
        page.get_textpage()
        codecs.lookup("utf-16-le")  # a module, which the first text would load
        fit_image(page.render().to_pil(), ImageFit(14))
    return answers(_document)


def _document(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """What the prompt says of a PDF, in UTF-8, and the pixels of the pages that it shows."""
    file = request["name"]
    pages = decode_pdf(data, name=file, fit=ImageFit.asked(request), sees=request["sees"])
    text = pdf_document(pages, file=file, name=request["title"]).encode("utf-8", "replace")
    shown = [(number, page.picture) for number, page in enumerate(pages, 1) if page.picture]
    pictures = [{"page": number, **picture.header} for number, picture in shown]
    pixels = (picture.image.tobytes() for _, picture in shown)
    return {"n_text_bytes": len(text), "pictures": pictures}, b"".join([text, *pixels])


def decode_pdf(data: bytes, *, name: str, fit: ImageFit, sees: bool) -> list[DocumentPage]:
    """The pages. sees: draw those that carry pictures, the first MAX_PICTURES of them.

    Raises MediaError if it has too many pages or characters, a password, or damage.
    """
    try:
        with pypdfium2.PdfDocument(data) as pdf:
            return _decode(pdf, name, fit, sees)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # whatever damage provokes behind the binding
        reason = "it is damaged or incomplete; get it or save it again"
        if getattr(error, "err_code", None) == FPDF_ERR_PASSWORD:
            reason = "it is protected by a password; save it without one"
        raise MediaError(f"cannot read PDF {name}: {reason}") from error


def _decode(pdf: pypdfium2.PdfDocument, name: str, fit: ImageFit, sees: bool) -> list[DocumentPage]:
    if len(pdf) > MAX_PAGES:
        raise MediaError(
            f"PDF {name} has {len(pdf)} pages; the limit is {MAX_PAGES}; save those that matter"
        )
    pages: list[DocumentPage] = []
    n_characters, n_pictures = 0, 0
    for raw_page in pdf:
        text = raw_page.get_textpage().get_text_bounded()
        n_characters += len(text)
        check_length(n_characters, f"PDF {name}")
        is_pictured = _is_pictured(raw_page, has_text=bool(text.strip()))
        picture = None
        if sees and is_pictured and n_pictures < MAX_PICTURES:
            picture = _drawn(raw_page, fit)
            n_pictures += picture is not None
        pages.append(DocumentPage(text, is_pictured, picture))
        raw_page.close()
    return pages


def _is_pictured(page: pypdfium2.PdfPage, *, has_text: bool) -> bool:
    """Whether a picture covers some of it, or all that is drawn there is no text."""
    if not has_text:
        return next(page.get_objects(), None) is not None
    area = page.get_width() * page.get_height()
    for drawn in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3):
        left, bottom, right, top = drawn.get_bounds()
        if (right - left) * (top - bottom) >= _MIN_SHARE * area:
            return True
    return False


def _drawn(page: pypdfium2.PdfPage, fit: ImageFit) -> Picture | None:
    width, height = page.get_size()
    if min(width, height) < 1 or max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
        return None
    scale = min(_SCALE, math.sqrt(_MAX_PIXELS / (width * height)))
    bitmap = page.render(scale=scale)  # pyright: ignore[reportArgumentType]  # documented as a float
    return fit_image(bitmap.to_pil(), fit)
