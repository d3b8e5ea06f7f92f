"""What a converted probe is compared with: the source that it came from, and states from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.probe_files import read_probe_source
from safesteer_edge.converters.vector_source import ARRAY_SUFFIXES, read_arrays
from safesteer_edge.errors import ProbeFileError, SettingsError
from safesteer_edge.formats.probe_onnx import SourceOptions


def read_reference(
    path: Path, n_features: int, *, is_flipped: bool = False
) -> Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]:
    """Return what scores states as the source does; any form that 'convert probe' reads by itself.

    is_flipped: the source's score falls with harm.
    Raises InputError for what cannot be read, ProbeFileError for another width.
    """
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
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise SettingsError(f"states in {path.name!r}; expected one of {', '.join(ARRAY_SUFFIXES)}")
    arrays = read_arrays(path).tensors
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
