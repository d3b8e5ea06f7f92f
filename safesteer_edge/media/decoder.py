"""Files from anywhere to pixels, samples and text, decoded in a child process under limits.

A decoder is C code that meets hostile files: it may loop, crash, or want all memory, and Python
could stop none of that in its own process. The child is started when the first file comes (60 ms
for images), stays for the next ones, and is replaced when a file brought it down.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from safesteer_edge.errors import MediaError
from safesteer_edge.media import documents
from safesteer_edge.media.decoder_process import (
    DecoderAnswer,
    DecoderKind,
    DecoderLimits,
    DecoderProcess,
)
from safesteer_edge.media.documents import DecodedDocument, DocumentPage
from safesteer_edge.media.image_decoding import HEIF_PACKAGE, is_heif
from safesteer_edge.media.image_fit import ImageFit
from safesteer_edge.media.images import MAX_FILE_BYTES as MAX_IMAGE_BYTES
from safesteer_edge.media.images import DecodedImage, image_of_pixels
from safesteer_edge.media.media_file import read_media_file
from safesteer_edge.media.sounds import MAX_FILE_BYTES as MAX_SOUND_BYTES
from safesteer_edge.media.sounds import DecodedSound, sound_of_samples

IMAGE_LIMITS = DecoderLimits(decode_s=4.5)
SOUND_LIMITS = DecoderLimits(decode_s=20.0, memory_bytes=512 << 20)
DOCUMENT_LIMITS = DecoderLimits(decode_s=20.0)


class MediaDecoder:
    """Owns the decoding processes. Not thread-safe. Close it, or use `with`."""

    def __init__(
        self,
        fit: ImageFit | None = None,
        *,
        image_limits: DecoderLimits = IMAGE_LIMITS,
        sound_limits: DecoderLimits = SOUND_LIMITS,
    ) -> None:
        """fit: how large the projector takes pictures; None: as they are, within reason."""
        self.fit = fit or ImageFit()
        self._limits: dict[DecoderKind, DecoderLimits] = {
            "image": image_limits,
            "heif": image_limits,
            "sound": sound_limits,
            "document": DOCUMENT_LIMITS,
        }
        self._processes: dict[DecoderKind, DecoderProcess] = {}

    def load_image(self, path: Path) -> DecodedImage:
        """Decode a picture: first frame, upright, on white, of the size that the projector takes.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "image", max_bytes=MAX_IMAGE_BYTES)
        has_heif = is_heif(data) and find_spec(HEIF_PACKAGE) is not None
        answer = self._decode("heif" if has_heif else "image", self._fitted_request(path), data)
        return _image(answer.header, answer.payload, path.name)

    def load_sound(self, path: Path, *, sample_rate: int) -> DecodedSound:
        """Decode WAV, MP3 or FLAC, mono, resampled to `sample_rate` Hz.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "sound", max_bytes=MAX_SOUND_BYTES)
        request = {"name": repr(str(path)), "sample_rate": sample_rate}
        answer = self._decode("sound", request, data)
        samples = np.frombuffer(answer.payload, dtype=np.float32)
        return sound_of_samples(samples, sample_rate, path.name)

    def load_document(self, path: Path, *, name: str, sees: bool) -> DecodedDocument:
        """Read a text file or a PDF. name: what the prompt calls it. sees: draw pictured pages.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "document", max_bytes=documents.MAX_FILE_BYTES)
        file = repr(str(path))
        if not documents.is_pdf(data):
            return documents.text_document(data, file=file, name=name)
        if find_spec(documents.PDF_PACKAGE) is None:
            raise MediaError(
                f"cannot read PDF {file}: pypdfium2 is not installed; "
                "pip install 'safesteer-edge[documents]'"
            )
        answer = self._decode("document", {**self._fitted_request(path), "sees": sees}, data)
        rest, pages = memoryview(answer.payload), list[DocumentPage]()
        for number, header in enumerate(answer.header["pages"], 1):
            text, rest = bytes(rest[: header["n_bytes"]]), rest[header["n_bytes"] :]
            picture = None
            if "size" in header:
                n_bytes = 3 * header["size"][0] * header["size"][1]
                picture = _image(header, rest[:n_bytes], f"{name}, page {number}")
                rest = rest[n_bytes:]
            pages.append(DocumentPage(text.decode("utf-8"), header["is_pictured"], picture))
        return documents.pdf_document(pages, file=file, name=name)

    def close(self) -> None:
        """End the processes. Idempotent; a later file starts a new one."""
        while self._processes:
            self._processes.popitem()[1].close()

    def __enter__(self) -> MediaDecoder:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()

    def _fitted_request(self, path: Path) -> dict[str, Any]:
        return {
            "name": repr(str(path)),
            "square_side": self.fit.square_side,
            "max_pixels": self.fit.max_pixels,
        }

    def _decode(self, kind: DecoderKind, request: dict[str, Any], data: bytes) -> DecoderAnswer:
        process = self._processes.get(kind)
        if process is None or not process.is_alive:
            if process is not None:
                process.close()
            process = self._processes[kind] = DecoderProcess(kind, self._limits[kind])
        return process.decode(request, data)


def _image(header: dict[str, Any], payload: bytes | memoryview, name: str) -> DecodedImage:
    width, height = header["size"]
    pixels = np.frombuffer(payload, dtype=np.uint8).reshape(height, width, 3)
    original_width, original_height = header["original_size"]
    return image_of_pixels(pixels, name, (original_width, original_height))
