"""Whether a bundle's probe still is the probe that it was made from: scores side by side.

The source computes its scores itself (scikit-learn, another ONNX graph) or in NumPy and float64;
the converted probe runs in ONNX Runtime, as it does while the guard decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.errors import ProbeFileError, SettingsError
from safesteer_edge.guard.probe import Device, OnnxProbe

N_RANDOM_STATES: Final = 256
MAX_SCORE_DIFFERENCE: Final = 1e-5

Scorer = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class ProbeParity:
    """How far two scorers differ over the same states. provider: where the bundle's probe ran."""

    provider: str
    n_states: int
    max_difference: float
    least_score: float
    largest_score: float


def compare_probe(probe: OnnxProbe, source: Scorer, states: NDArray[np.float32]) -> ProbeParity:
    """Score the states twice and compare. Raises GuardError for scores that are no scores."""
    scores = probe.score(states).astype(np.float64)
    return ProbeParity(
        provider=probe.provider,
        n_states=len(states),
        max_difference=float(np.abs(scores - source(states)).max()),
        least_score=float(scores.min()),
        largest_score=float(scores.max()),
    )


def read_source(path: Path, n_features: int, *, is_flipped: bool = False) -> Scorer:
    """Return what scores states as the source does; any form that 'convert probe' reads by itself.

    is_flipped: the source's score falls with harm.
    Raises InputError for what cannot be read, ProbeFileError for another width.
    """
    from safesteer_edge.converters.probe_files import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
        read_probe_source,
    )
    from safesteer_edge.converters.probe_source import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
        SourceOptions,
    )

    source = read_probe_source(path, SourceOptions())
    if source.n_features != n_features:
        raise ProbeFileError(
            f"{str(path)!r} reads states of {source.n_features} values; the bundle's probe reads "
            f"{n_features}"
        )
    if is_flipped:
        return lambda states: 1.0 - source.reference_scores(states)
    return source.reference_scores


def read_states(path: Path, n_features: int) -> NDArray[np.float32]:
    """Return states from a file of arrays: 'states', or its only matrix.

    Raises SettingsError if they are not finite float (n, n_features), InputError for a file that
    cannot be read.
    """
    from safesteer_edge.converters.vector_arrays import (  # pyright: ignore[reportMissingImports]  # see [tool.setuptools.package-dir]
        ARRAY_SUFFIXES,
        read_arrays,
    )

    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise SettingsError(f"states in {path.name!r}; expected one of {', '.join(ARRAY_SUFFIXES)}")
    arrays = read_arrays(path).arrays
    states = arrays.get("states")
    if states is None and len(arrays) == 1:
        states = next(iter(arrays.values()))
    shape = None if states is None else states.shape
    if states is None or states.ndim != 2 or not len(states) or states.shape[1] != n_features:
        raise SettingsError(
            f"{str(path)!r} holds states of shape {shape}; expected (n, {n_features})"
        )
    with np.errstate(over="ignore"):
        narrow = states.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise SettingsError(f"{str(path)!r} holds states that are not finite in float32")
    return narrow


def random_states(bundle: GuardBundle, *, seed: int = 0) -> NDArray[np.float32]:
    """Return states like the model's own: random mixtures of the bundle's stored ones, and noise.

    Float32 (N_RANDOM_STATES, n_features). Pure noise would leave most probes saturated.
    """
    rng = np.random.default_rng(seed)
    canaries = (*bundle.config.canaries.probe, *bundle.config.canaries.engine)
    stored = np.stack([canary.state() for canary in canaries]).astype(np.float64)
    mixtures = rng.dirichlet(np.ones(len(stored)), N_RANDOM_STATES) @ stored
    noise = rng.standard_normal(mixtures.shape) * stored.std()
    share = rng.uniform(0.0, 0.5, (N_RANDOM_STATES, 1))
    return (mixtures + share * noise).astype(np.float32)


def open_probe_again(bundle: GuardBundle, device: Device) -> OnnxProbe:
    """Open the bundle's own probe on a device. The caller closes it. Raises GuardError."""
    path = bundle.folder / bundle.config.probe.file
    return OnnxProbe.from_bytes(path.read_bytes(), name=str(path), device=device)
