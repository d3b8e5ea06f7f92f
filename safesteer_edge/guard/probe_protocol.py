"""What the guard needs from a probe, so that its rules can be tested with plain Python."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Probe(Protocol):
    """A Decoding-Probe: hidden states in, harmful scores out. Source: SafeSteer, §3."""

    @property
    def n_features(self) -> int:
        """The width of one state: n_embd times the number of layers that the probe reads."""
        ...

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score hidden states.

        hidden: float32 (n, n_features), n >= 1. Not changed.
        Returns float32 (n,), harmful scores in [0, 1], same order.
        Raises GuardError where it cannot judge: a score is never made up.
        """
        ...
