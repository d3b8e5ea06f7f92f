"""Sounds: WAV files to mono float32 samples at the rate that a projector hears."""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import MediaError
from safesteer_edge.media.media_file import check_media_file

MAX_FILE_BYTES = 128 * 1024 * 1024
MAX_SECONDS = 600.0
_DTYPES = {1: np.dtype(np.uint8), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


@dataclass(frozen=True, slots=True, eq=False)
class DecodedSound:
    """samples: float32 (n,), mono, in [-1, 1]. sha256: of the rate and the samples, in hex."""

    samples: NDArray[np.float32]
    sample_rate: int
    sha256: str
    name: str


def load_sound(path: Path, *, sample_rate: int) -> DecodedSound:
    """Decode a PCM WAV file and resample it (linearly) to `sample_rate` Hz.

    Raises MediaError if it is missing, too long, damaged, or not PCM WAV.
    """
    name = repr(str(path))
    check_media_file(path, "sound", max_bytes=MAX_FILE_BYTES)
    try:
        with wave.open(str(path), "rb") as stream:
            width, rate, n_frames = (
                stream.getsampwidth(),
                stream.getframerate(),
                stream.getnframes(),
            )
            if width not in _DTYPES or rate <= 0:
                raise MediaError(f"sound {name} has {8 * width}-bit samples; use 8, 16 or 32")
            if n_frames / rate > MAX_SECONDS:
                raise MediaError(
                    f"sound {name} lasts {n_frames / rate:.0f} s; the limit is {MAX_SECONDS:.0f}; "
                    "cut it first"
                )
            n_channels = stream.getnchannels()
            data = stream.readframes(n_frames)
    except OSError as error:
        raise MediaError(f"cannot read sound {name}: {error.strerror}; check the path") from error
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a chunk beyond the file
        raise MediaError(
            f"cannot use {name} as sound: {str(error) or 'it is damaged'}; convert it to PCM WAV"
        ) from error
    # A file that was cut off says more frames than it has, and may end within one.
    n_whole_frames = len(data) // (width * n_channels)
    if n_whole_frames == 0:
        raise MediaError(f"sound {name} is empty; record it again")
    raw = np.frombuffer(data, dtype=_DTYPES[width], count=n_whole_frames * n_channels)
    mono = _to_unit_range(raw).reshape(-1, n_channels).mean(axis=1)
    samples = _resampled(mono, rate, sample_rate)
    digest = hashlib.sha256(str(sample_rate).encode() + samples.tobytes())
    return DecodedSound(samples, sample_rate, digest.hexdigest(), path.name)


def _to_unit_range(samples: NDArray[Any]) -> NDArray[np.float32]:
    """8-bit WAV samples are unsigned, wider ones signed."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


def _resampled(samples: NDArray[np.float32], rate: int, wanted_rate: int) -> NDArray[np.float32]:
    if rate == wanted_rate:
        return samples.astype(np.float32)
    n_wanted = max(1, round(len(samples) * wanted_rate / rate))
    at = np.arange(n_wanted) * (rate / wanted_rate)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
