"""One-line checks that say what is wrong in a guard bundle."""

from __future__ import annotations

from safesteer_edge.errors import BundleError


def require(holds: bool, problem: str) -> None:
    """Raise BundleError with this text unless the condition holds."""
    if not holds:
        raise BundleError(problem)


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise BundleError unless low <= value <= high; a NaN is in no range."""
    require(low <= value <= high, f"{name} is {value}; expected {low:g} to {high:g}")
