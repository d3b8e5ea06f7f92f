"""Sounds: WAV files to mono float32 samples at the rate that a projector hears."""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import MediaError

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

    Raises MediaError if it is missing, too long, or not PCM WAV.
    """
    name = repr(str(path))
    try:
        with wave.open(str(path), "rb") as stream:
            width, rate, n_frames = (
                stream.getsampwidth(),
                stream.getframerate(),
                stream.getnframes(),
            )
            if width not in _DTYPES or rate <= 0:
                raise MediaError(f"sound {name} has {8 * width}-bit samples; use 8, 16 or 32")
            if n_frames == 0 or n_frames / rate > MAX_SECONDS:
                raise MediaError(
                    f"sound {name} lasts {n_frames / rate:.0f} s; expected up to {MAX_SECONDS:.0f}"
                )
            raw = np.frombuffer(stream.readframes(n_frames), dtype=_DTYPES[width])
            frames = raw[: len(raw) // stream.getnchannels() * stream.getnchannels()]
            channels = frames.reshape(-1, stream.getnchannels())
    except OSError as error:
        raise MediaError(f"cannot read sound {name}: {error.strerror}; check the path") from error
    except (wave.Error, EOFError) as error:
        raise MediaError(f"cannot use {name} as sound: {error}; convert it to WAV") from error
    samples = _resampled(_to_unit_range(channels).mean(axis=1), rate, sample_rate)
    digest = hashlib.sha256(str(sample_rate).encode() + samples.tobytes())
    return DecodedSound(samples, sample_rate, digest.hexdigest(), path.name)


def _to_unit_range(samples: NDArray[np.integer]) -> NDArray[np.float32]:
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    return samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)


def _resampled(samples: NDArray[np.float32], rate: int, wanted_rate: int) -> NDArray[np.float32]:
    if rate == wanted_rate:
        return samples.astype(np.float32)
    n_wanted = max(1, round(len(samples) * wanted_rate / rate))
    at = np.arange(n_wanted) * (rate / wanted_rate)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)
