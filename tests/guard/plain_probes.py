"""Probes in plain Python for the scripted engine's states: (position, token id) → harmful score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tests.guard.scripted_engine import N_FEATURES

ScoreOf = Callable[[int, int], float]


class PlainProbe:
    """score_of(position, token_id) for every state; remembers how many states it was given."""

    def __init__(self, score_of: ScoreOf) -> None:
        self._score_of = score_of
        self.n_features = N_FEATURES
        self.n_scored = 0

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        self.n_scored += len(hidden)
        scores = [self._score_of(int(position), int(token_id)) for position, token_id in hidden]
        return np.array(scores, dtype=np.float32)


class BrokenProbe:
    """Scores like `working` until the position `fails_at`, where it answers with `fail(hidden)`."""

    def __init__(
        self,
        working: PlainProbe,
        *,
        fails_at: int,
        fail: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    ) -> None:
        self._working = working
        self._fails_at = fails_at
        self._fail = fail
        self.n_features = working.n_features

    def score(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        if hidden[0, 0] >= self._fails_at:
            return self._fail(hidden)
        return self._working.score(hidden)


def by_token(scores: Mapping[int, float], *, default: float = 0.0) -> PlainProbe:
    """A probe that looks at the token alone."""
    return PlainProbe(lambda _position, token_id: scores.get(token_id, default))
