"""The exact distribution of a function of uniform random numbers, without sampling.

A function that uses numbers from [0, 1) by comparing them with thresholds is a step function of
each. The steps are found by bisection, and their widths are the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

# A step's edge is known to within this, so a probability to within twice that for each number.
EDGE_ERROR = 2.0**-30
_N_FIRST_CUTS = 2  # so that a value which comes back further right is found all the same


class OutOfNumbersError(Exception):
    """The function asked for one uniform number more than it was given."""


class GivenUniforms:
    """Stands in for a random generator: `random` gives out the numbers it was made with."""

    def __init__(self, *uniforms: float) -> None:
        self._left = list(uniforms)
        self.n_used = 0

    def random(self) -> float:
        if not self._left:
            raise OutOfNumbersError
        self.n_used += 1
        return self._left.pop(0)

    @property
    def as_generator(self) -> np.random.Generator:
        """Typed as what the code under test asks for; it calls nothing but `random`."""
        return cast(np.random.Generator, self)


def exact_law(
    outcome: Callable[[np.random.Generator], int], n_outcomes: int
) -> NDArray[np.float64]:
    """P(outcome = i) over its uniform numbers: float64 (n_outcomes,), within k · EDGE_ERROR."""
    law = np.zeros(n_outcomes)
    _add_branch_inplace(law, outcome, (), 1.0)
    return law


def _add_branch_inplace(
    law: NDArray[np.float64],
    outcome: Callable[[np.random.Generator], int],
    uniforms: tuple[float, ...],
    weight: float,
) -> None:
    """Add the outcomes that follow these uniform numbers, which have this probability."""
    index = _try(outcome, uniforms)
    if index is not None:
        law[index] += weight
        return
    for low, high in pairwise(np.linspace(0.0, 1.0, _N_FIRST_CUTS + 1).tolist()):
        for start, end in _steps(lambda u: _try(outcome, (*uniforms, u)), low, high):
            _add_branch_inplace(law, outcome, (*uniforms, start), weight * (end - start))


def _try(outcome: Callable[[np.random.Generator], int], uniforms: tuple[float, ...]) -> int | None:
    try:
        return outcome(GivenUniforms(*uniforms).as_generator)
    except OutOfNumbersError:
        return None


def _steps(
    value_at: Callable[[float], int | None], low: float, high: float
) -> Iterator[tuple[float, float]]:
    """The pieces of [low, high) on which a step function is constant, from left to right."""
    start, last = low, float(np.nextafter(high, 0.0))
    while (value := value_at(start)) != value_at(last):
        inside, outside = start, last
        while outside - inside > EDGE_ERROR:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if value_at(middle) == value else (inside, middle)
        yield start, outside
        start = outside
    yield start, high
