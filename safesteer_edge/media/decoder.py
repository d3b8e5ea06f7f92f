"""Files from anywhere to pixels, samples and text, decoded in a child process under limits.

A decoder is C code that meets hostile files: it may loop, crash, or want all memory, and Python
could stop none of that in its own process. The child is started when the first file comes (60 ms
for images), stays for the next ones, and is replaced when a file brought it down.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from safesteer_edge.errors import MediaError
from safesteer_edge.media import documents
from safesteer_edge.media.documents import DecodedDocument, DocumentPage
from safesteer_edge.media.image_decoding import HEIF_PACKAGE, is_heif
from safesteer_edge.media.image_fit import ImageFit
from safesteer_edge.media.images import MAX_FILE_BYTES as MAX_IMAGE_BYTES
from safesteer_edge.media.images import DecodedImage, image_of_pixels
from safesteer_edge.media.media_file import read_media_file
from safesteer_edge.media.sounds import MAX_FILE_BYTES as MAX_SOUND_BYTES
from safesteer_edge.media.sounds import DecodedSound, sound_of_samples
from safesteer_edge.processes.confined_process import ConfinedProcess

# -- the process that decodes media files, asked for one file after another ------------------------

# HEIC apart from other pictures: its decoder needs threads, which the others may not start.
DecoderKind = Literal["image", "heif", "sound", "document"]

_PACKAGES = {
    "image": ("PIL",),
    "heif": ("PIL", "pillow_heif", "_pillow_heif"),
    "sound": ("miniaudio", "_miniaudio", "_cffi_backend"),
    "document": ("PIL", "pypdfium2", "pypdfium2_raw"),
}
_MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What one file may use of the decoding process. max_answer_bytes: of pixels or samples."""

    decode_s: float
    start_s: float = 30.0  # a cold disk or a virus scanner may be slow
    memory_bytes: int = 960 << 20
    max_answer_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class DecoderAnswer:
    """What the decoder said of a file, and its pixels or samples."""

    header: dict[str, Any]
    payload: bytes


class DecoderProcess:
    """One child process that decodes files of one kind, one after another. Not thread-safe."""

    def __init__(self, kind: DecoderKind, limits: DecoderLimits) -> None:
        """Start the child, without waiting for it. Raises MediaError if it cannot be started."""
        self._what = "image" if kind == "heif" else kind
        self._limits = limits
        self._is_ready = False
        try:
            self._child = ConfinedProcess(
                Path(__file__).with_name("decoder_worker.py"),
                {"kind": kind, "memory_bytes": limits.memory_bytes},
                packages=_PACKAGES[kind],
                read_reply=partial(_read_answer, max_bytes=limits.max_answer_bytes),
            )
        except (OSError, ModuleNotFoundError) as error:
            raise MediaError(
                f"cannot start the process that decodes {self._what}s: {error}"
            ) from error

    def decode(self, request: dict[str, Any], data: bytes) -> DecoderAnswer:
        """Decode one file. request: with `name`, for messages.

        Raises MediaError that says what is wrong with it, or that it broke a limit; the process may
        be dead then (`is_alive`).
        """
        try:
            if not self._is_ready:
                self._wait_for_start()
            line = json.dumps({**request, "n_bytes": len(data)}).encode("ascii") + b"\n"
            self._child.send(line + data)
            answer = self._wait_for_answer(f"{self._what} {request['name']}")
        except BaseException:  # Ctrl-C too: a late answer would pass for the next file's
            self._child.kill()
            raise
        if "error" in answer.header:
            raise MediaError(str(answer.header["error"]))
        return answer

    @property
    def is_alive(self) -> bool:
        """Whether the child can be asked again."""
        return self._child.is_alive

    @property
    def process_id(self) -> int:
        """The child's."""
        return self._child.process_id

    def close(self) -> None:
        """Ask the child to end, and kill it if it does not. Safe to call twice."""
        self._child.close()

    def _wait_for_start(self) -> None:
        try:
            self._is_ready = self._child.receive(self._limits.start_s) is not None
        except TimeoutError:
            self._is_ready = False
        if not self._is_ready:
            raise MediaError(
                f"the process that decodes {self._what}s does not start; reinstall safesteer-edge"
            )

    def _wait_for_answer(self, file: str) -> DecoderAnswer:
        limits = self._limits
        try:
            answer = self._child.receive(limits.decode_s)
        except TimeoutError:
            raise MediaError(
                f"{file} takes more than {limits.decode_s:g} s to decode; make it smaller, or save "
                "it in another format"
            ) from None
        if answer is None:
            raise MediaError(
                f"{file} ended the process that decoded it: it is damaged, or needs more than "
                f"{limits.memory_bytes >> 20} MiB; save it in another format"
            )
        return answer


def _read_answer(stdout: IO[bytes], max_bytes: int) -> DecoderAnswer | None:
    """None: the child ended, or did not say what it should."""
    line = stdout.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        return None
    header = cast("dict[str, Any]", json.loads(line))
    n_bytes = int(header["n_bytes"])
    if n_bytes > max_bytes:
        return None
    payload = stdout.read(n_bytes)
    return DecoderAnswer(header, payload) if len(payload) == n_bytes else None


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
