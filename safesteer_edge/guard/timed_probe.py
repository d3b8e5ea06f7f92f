"""A probe that is timed, and whose answers are checked: what guarded decoding asks."""

from __future__ import annotations

import time

import numpy as np

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.probe_protocol import Probe


class TimedProbe:
    """The probe, with the seconds that its calls took.

    Raises GuardError for anything but one score in [0, 1] for each state.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.elapsed_s = 0.0

    @property
    def n_features(self) -> int:
        return self._probe.n_features

    def score(self, hidden: np.typing.NDArray[np.float32]) -> np.typing.NDArray[np.float32]:
        started_s = time.perf_counter()
        scores = self._probe.score(hidden)
        self.elapsed_s += time.perf_counter() - started_s
        # Fail closed here too, whatever the probe's own checks are. NaN fails the comparison.
        in_range = all(0.0 <= score <= 1.0 for score in scores.ravel().tolist())
        if scores.shape != (len(hidden),) or not in_range:
            raise GuardError(
                f"the probe gave {scores.ravel().tolist()[:8]} for {len(hidden)} states, not one "
                "score in [0, 1] for each; verify or rebuild its bundle"
            )
        return scores
