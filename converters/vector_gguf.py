"""Steering directions from arrays to llama.cpp's control vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import VectorFileError
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector


def matrix_to_control_vector(
    matrix: NDArray[np.floating[Any]],
    *,
    model_hint: str,
    layer_range: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> ControlVector:
    """Return a control vector of the matrix' rows times `scale`, zero outside the layers named.

    matrix: (n_layer, n_embd), row L measured at the output of block L (0-based), one row per
    block of the model. Not changed. model_hint: the model's architecture ('llama').
    layer_range: first and last block to steer, both included; None for all but block 0, which
    llama.cpp cannot steer.
    Raises VectorFileError for another shape, layers that are not there, and numbers that are
    not finite once they are float32.
    """
    if matrix.ndim != 2:
        raise _misfit(f"the directions have shape {matrix.shape}; expected (n_layer, n_embd)")
    n_layer = len(matrix)
    first, last = (1, n_layer - 1) if layer_range is None else layer_range
    if not 1 <= first <= last < n_layer:
        raise _misfit(f"layers {first} to {last} were asked for; expected 1 to {n_layer - 1}")
    directions = np.zeros(matrix.shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is refused by ControlVector
        directions[first : last + 1] = matrix[first : last + 1].astype(np.float64) * scale
    return ControlVector(directions, model_hint)


def write_vector(
    path: Path,
    matrix: NDArray[np.floating[Any]],
    *,
    model_hint: str,
    layer_range: tuple[int, int] | None = None,
    scale: float = 1.0,
) -> None:
    """Write vector.gguf from a matrix. Arguments and errors: see matrix_to_control_vector."""
    vector = matrix_to_control_vector(
        matrix, model_hint=model_hint, layer_range=layer_range, scale=scale
    )
    write_control_vector(path, vector)


def _misfit(problem: str) -> VectorFileError:
    return VectorFileError(f"cannot make a control vector: {problem}; check what it came from")
