"""Learning curves: what a stretch of training showed, one row of a CSV file each."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


class Meters:
    """Running sums of what a stretch of training shows."""

    def __init__(self) -> None:
        self.n_batches = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """Add `count` observations that sum to `total`."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def means(self) -> dict[str, float]:
        """Mean of each quantity."""
        return {
            name: round(self._sums[name] / max(1, self._counts[name]), 4) for name in self._sums
        }


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append a row; the first one brings the header."""
    is_new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
