"""PDFs that PDFium itself makes: pages of text, and pages with a picture on them."""

from __future__ import annotations

import ctypes
import io
import re
from pathlib import Path

import pypdfium2
from PIL import Image
from pypdfium2 import raw

PAGE = (595, 842)


def write_pdf(path: Path, *pages: str | tuple[str, float]) -> Path:
    """Write a PDF. A page: its lines, or those and how wide a teal square on it is, in points."""
    with pypdfium2.PdfDocument.new() as pdf:
        font = raw.FPDFText_LoadStandardFont(pdf.raw, b"Helvetica")
        for each in pages:
            text, side = each if isinstance(each, tuple) else (each, 0)
            page = pdf.new_page(*PAGE)
            for number, line in enumerate(text.splitlines()):
                drawn = raw.FPDFPageObj_CreateTextObj(pdf.raw, font, 12)
                encoded = ctypes.create_string_buffer(line.encode("utf-16-le") + b"\0\0")
                raw.FPDFText_SetText(drawn, ctypes.cast(encoded, ctypes.POINTER(ctypes.c_ushort)))
                raw.FPDFPageObj_Transform(drawn, 1, 0, 0, 1, 40, 790 - 15 * number)
                raw.FPDFPage_InsertObject(page.raw, drawn)
            if side:
                jpeg = io.BytesIO()
                Image.new("RGB", (32, 32), "teal").save(jpeg, "JPEG")
                image = pypdfium2.PdfImage.new(pdf)
                image.load_jpeg(jpeg, inline=True)
                image.set_matrix(pypdfium2.PdfMatrix().scale(side, side).translate(100, 100))
                page.insert_obj(image)
            page.gen_content()
        pdf.save(str(path))
    return path


def write_locked_pdf(path: Path) -> Path:
    """One that asks for a password."""
    data = write_pdf(path, "secret").read_bytes()
    key = b"<" + b"41" * 32 + b">"
    lock = b"/ID[<41><41>]/Encrypt<</Filter/Standard/V 1/R 2/P -4/O" + key + b"/U" + key + b">>"
    path.write_bytes(re.sub(rb"trailer\s*<<", lambda m: m.group() + lock, data))
    return path
