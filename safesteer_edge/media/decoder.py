"""Files from anywhere to pixels, samples and text, decoded in a child process under limits.

A decoder is C code that meets hostile files: it may loop, crash, or want all memory, and Python
could stop none of that in its own process. The child is started when the first file comes (60 ms
for images), stays for the next ones, and is replaced when a file brought it down.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import MediaError
from safesteer_edge.media import documents
from safesteer_edge.media.image_decoding import HEIF_PACKAGE, ImageFit, is_heif
from safesteer_edge.media.media_file import read_media_file
from safesteer_edge.processes.child import ConfinedChild

# HEIC apart from other pictures: its decoder needs threads, which the others may not start.
DecoderKind = Literal["image", "heif", "sound", "document"]

MAX_IMAGE_BYTES: Final = 20 * 1024 * 1024
MAX_SOUND_BYTES: Final = 64 * 1024 * 1024
# What each kind of process runs, and which packages that needs.
_DECODERS: Final[Mapping[DecoderKind, tuple[str, tuple[str, ...]]]] = {
    "image": ("image_decoding:image_decoder", ("PIL",)),
    "heif": ("image_decoding:image_decoder", ("PIL", "pillow_heif", "_pillow_heif")),
    "sound": ("sound_decoding:sound_decoder", ("miniaudio", "_miniaudio", "_cffi_backend")),
    "document": ("pdf_decoding:document_decoder", ("PIL", "pypdfium2", "pypdfium2_raw")),
}


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """pixels: uint8 (height, width, 3), RGB. sha256: of size and pixels, in hex.

    original_width, original_height: of the picture in the file, upright.
    """

    pixels: NDArray[np.uint8]
    sha256: str
    name: str
    original_width: int
    original_height: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])


def image_of_pixels(
    pixels: NDArray[np.uint8], name: str, original_size: tuple[int, int] | None = None
) -> DecodedImage:
    """The image of these pixels, uint8 (height, width, 3), RGB. original_size: width, height."""
    width, height = original_size or (int(pixels.shape[1]), int(pixels.shape[0]))
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return DecodedImage(pixels, digest.hexdigest(), name, width, height)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedSound:
    """samples: float32 (n,), mono, in [-1, 1]. sha256: of the rate and the samples, in hex."""

    samples: NDArray[np.float32]
    sample_rate: int
    sha256: str
    name: str

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, slots=True)
class DecodedDocument:
    """text: what the prompt says of it. pictures: of pages, in order."""

    text: str
    pictures: tuple[DecodedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What one file may use of the decoding process. max_answer_bytes: of pixels or samples."""

    decode_s: float
    start_s: float = 30.0  # a cold disk or a virus scanner may be slow
    memory_bytes: int = 960 << 20
    max_answer_bytes: int = 64 << 20


class DecoderProcess(ConfinedChild):
    """One child process that decodes files of one kind, one after another. Not thread-safe."""

    def __init__(self, kind: DecoderKind, limits: DecoderLimits) -> None:
        """Start the child, without waiting for it. Raises MediaError if it cannot be started."""
        self._what = "image" if kind == "heif" else kind
        self._limits = limits
        self._is_ready = False
        serve, packages = _DECODERS[kind]
        try:
            super().__init__(
                f"safesteer_edge.media.{serve}",
                {"heif": kind == "heif"},
                packages=packages,
                memory_bytes=limits.memory_bytes,
                max_reply_bytes=limits.max_answer_bytes,
                may_start_threads=kind == "heif",
            )
        except (OSError, ModuleNotFoundError) as error:
            raise MediaError(
                f"cannot start the process that decodes {self._what}s: {error}"
            ) from error

    def decode(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """What is told about one file, and its content. request: with `name`, for messages.

        Raises MediaError that says what is wrong with it, or that it broke a limit; the process may
        be dead then (`is_alive`).
        """
        limits, file = self._limits, f"{self._what} {request['name']}"
        if not self._is_ready:
            try:
                self.receive(limits.start_s)
            except (TimeoutError, EOFError):
                raise MediaError(
                    f"the process that decodes {self._what}s does not start; reinstall "
                    "safesteer-edge"
                ) from None
            self._is_ready = True
        try:
            header, content = self.ask(request, data, limit_s=limits.decode_s)
        except TimeoutError:
            raise MediaError(
                f"{file} takes more than {limits.decode_s:g} s to decode; make it smaller, or save "
                "it in another format"
            ) from None
        except EOFError:
            raise MediaError(
                f"{file} ended the process that decoded it: it is damaged, or needs more than "
                f"{limits.memory_bytes >> 20} MiB; save it in another format"
            ) from None
        if "error" in header:
            raise MediaError(str(header["error"]))
        return header, content


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
        kind: DecoderKind = "heif" if has_heif else "image"
        return _image(*self._decode(kind, self._fitted_request(path), data), path.name)

    def load_sound(self, path: Path, *, sample_rate: int) -> DecodedSound:
        """Decode WAV, MP3 or FLAC, mono, resampled to `sample_rate` Hz.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "sound", max_bytes=MAX_SOUND_BYTES)
        request = {"name": repr(str(path)), "sample_rate": sample_rate}
        _, content = self._decode("sound", request, data)
        samples = np.frombuffer(content, dtype=np.float32)
        finite = np.clip(np.nan_to_num(samples), -1.0, 1.0)  # a WAV of floats may hold anything
        digest = hashlib.sha256(str(sample_rate).encode() + finite.tobytes())
        return DecodedSound(finite, sample_rate, digest.hexdigest(), path.name)

    def load_document(self, path: Path, *, name: str, sees: bool) -> DecodedDocument:
        """Read a text file or a PDF. name: what the prompt calls it. sees: draw pictured pages.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "document", max_bytes=documents.MAX_FILE_BYTES)
        file = repr(str(path))
        if not documents.is_pdf(data):
            return DecodedDocument(documents.text_document(data, file=file, name=name))
        if find_spec(documents.PDF_PACKAGE) is None:
            raise MediaError(
                f"cannot read PDF {file}: pypdfium2 is not installed; "
                "pip install 'safesteer-edge[documents]'"
            )
        request = {**self._fitted_request(path), "title": name, "sees": sees}
        header, content = self._decode("document", request, data)
        text, pixels = np.split(np.frombuffer(content, np.uint8), [header["n_text_bytes"]])
        ends = np.cumsum(
            [3 * np.prod(picture["size"]) for picture in header["pictures"]], dtype=int
        )
        return DecodedDocument(
            text.tobytes().decode("utf-8"),
            tuple(
                _image(picture, part, f"{name}, page {picture['page']}")
                for picture, part in zip(header["pictures"], np.split(pixels, ends), strict=False)
            ),
        )

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

    def _decode(
        self, kind: DecoderKind, request: dict[str, Any], data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        process = self._processes.get(kind)
        if process is None or not process.is_alive:
            if process is not None:
                process.close()
            process = self._processes[kind] = DecoderProcess(kind, self._limits[kind])
        return process.decode(request, data)


def _image(header: dict[str, Any], content: bytes | NDArray[np.uint8], name: str) -> DecodedImage:
    width, height = header["size"]
    pixels = np.frombuffer(content, dtype=np.uint8).reshape(height, width, 3)
    original_width, original_height = header["original_size"]
    return image_of_pixels(pixels, name, (original_width, original_height))
