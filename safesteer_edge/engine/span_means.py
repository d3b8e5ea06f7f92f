"""Mean states over runs of tokens, summed up while the tokens are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class SpanMeans:
    """spans: (sequence, places), each a run of tokens of one sequence; they may overlap."""

    def __init__(self, spans: Sequence[tuple[int, range]]) -> None:
        self._spans = spans
        self._sums: list[NDArray[np.float64]] = [np.zeros(()) for _ in spans]

    def wants(self, places: range) -> bool:
        """Whether any of these places, of whichever sequence, is in a span."""
        return any(
            span.start < places.stop and places.start < span.stop for _, span in self._spans if span
        )

    def add(
        self, sequences: Sequence[int], places: Sequence[int], states: NDArray[np.float32]
    ) -> None:
        """Count rows that were evaluated: float32 (n_rows, n_features)."""
        of, at = np.asarray(sequences), np.asarray(places)
        for index, (sequence, span) in enumerate(self._spans):
            inside = (of == sequence) & (at >= span.start) & (at < span.stop)
            if inside.any():
                self._sums[index] = self._sums[index] + states[inside].sum(axis=0, dtype=np.float64)

    def means(self, ends: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each span: float32 (n_spans, n_features); of an empty one the state given for it."""
        found = [
            total / len(span) if span else end
            for (_, span), total, end in zip(self._spans, self._sums, ends, strict=True)
        ]
        return np.array(found, dtype=np.float32).reshape(ends.shape)

    def beside(self, ends: NDArray[np.float32]) -> NDArray[np.float32]:
        """These states, and the spans' means: float32 (n_spans, 2, n_features)."""
        return np.stack([ends, self.means(ends)], axis=1)
