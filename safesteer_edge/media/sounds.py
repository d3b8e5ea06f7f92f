"""Sounds as a projector gets them: mono float32 samples at the rate that it hears."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_FILE_BYTES = 64 * 1024 * 1024


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


def sound_of_samples(samples: NDArray[np.float32], sample_rate: int, name: str) -> DecodedSound:
    """The sound of these samples, float32 (n,), mono."""
    finite = np.clip(np.nan_to_num(samples), -1.0, 1.0)  # a WAV of floats may hold anything
    digest = hashlib.sha256(str(sample_rate).encode() + finite.tobytes())
    return DecodedSound(finite, sample_rate, digest.hexdigest(), name)
