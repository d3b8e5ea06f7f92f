"""Media files from anywhere to pixels and samples, decoded in a child process under limits.

A decoder is C code that meets hostile files: it may loop, crash, or want all memory, and Python
could stop none of that in its own process. The child is started when the first file comes (60 ms
for images), stays for the next ones, and is replaced when a file brought it down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from safesteer_edge.media.decoder_process import DecoderAnswer, DecoderLimits, DecoderProcess
from safesteer_edge.media.image_fit import ImageFit
from safesteer_edge.media.images import MAX_FILE_BYTES as MAX_IMAGE_BYTES
from safesteer_edge.media.images import DecodedImage, image_of_pixels
from safesteer_edge.media.media_file import MediaKind, read_media_file
from safesteer_edge.media.sounds import MAX_FILE_BYTES as MAX_SOUND_BYTES
from safesteer_edge.media.sounds import DecodedSound, sound_of_samples

IMAGE_LIMITS = DecoderLimits(decode_s=4.5)
SOUND_LIMITS = DecoderLimits(decode_s=20.0, memory_bytes=512 << 20)


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
        self._limits: dict[MediaKind, DecoderLimits] = {
            "image": image_limits,
            "sound": sound_limits,
        }
        self._processes: dict[MediaKind, DecoderProcess] = {}

    def load_image(self, path: Path) -> DecodedImage:
        """Decode a picture: first frame, upright, on white, of the size that the projector takes.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "image", max_bytes=MAX_IMAGE_BYTES)
        request = {
            "name": repr(str(path)),
            "square_side": self.fit.square_side,
            "max_pixels": self.fit.max_pixels,
        }
        answer = self._decode("image", request, data)
        width, height = answer.header["size"]
        pixels = np.frombuffer(answer.payload, dtype=np.uint8).reshape(height, width, 3)
        original_width, original_height = answer.header["original_size"]
        return image_of_pixels(pixels, path.name, (original_width, original_height))

    def load_sound(self, path: Path, *, sample_rate: int) -> DecodedSound:
        """Decode WAV, MP3 or FLAC, mono, resampled to `sample_rate` Hz.

        Raises MediaError, in one line, for whatever is wrong with it.
        """
        data = read_media_file(path, "sound", max_bytes=MAX_SOUND_BYTES)
        request = {"name": repr(str(path)), "sample_rate": sample_rate}
        answer = self._decode("sound", request, data)
        samples = np.frombuffer(answer.payload, dtype=np.float32)
        return sound_of_samples(samples, sample_rate, path.name)

    def close(self) -> None:
        """End the processes. Idempotent; a later file starts a new one."""
        while self._processes:
            self._processes.popitem()[1].close()

    def __enter__(self) -> MediaDecoder:
        return self

    def __exit__(self, *_details: object) -> None:
        self.close()

    def _decode(self, kind: MediaKind, request: dict[str, Any], data: bytes) -> DecoderAnswer:
        process = self._processes.get(kind)
        if process is None or not process.is_alive:
            if process is not None:
                process.close()
            process = self._processes[kind] = DecoderProcess(kind, self._limits[kind])
        return process.decode(request, data)
