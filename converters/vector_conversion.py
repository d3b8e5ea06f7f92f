"""One control vector from one or several sources: placed, normalised, weighted, summed, scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.vector_gguf import matrix_to_control_vector
from safesteer_edge.converters.vector_layers import BlockDirections, place_on_blocks
from safesteer_edge.converters.vector_source import (
    LayerBase,
    SourceConvention,
    VectorSource,
    read_source,
)
from safesteer_edge.errors import SettingsError, VectorFileError
from safesteer_edge.formats.control_vector_file import ControlVector
from safesteer_edge.formats.model_file import ModelInfo

_MAX_SOURCES = 64


@dataclass(frozen=True, slots=True)
class VectorRequest:
    """What to make of which files.

    layer_base, convention: how layers are numbered where a file does not say, see `read_source`.
    layers: first and last block (0-based) to keep, both included; None: all that can be steered.
    weights: of the sources, in their order; None: 1 each. normalise: give every direction of a
    source the length 1 before its weight. scale: of the sum.
    model: its width, layers and architecture are checked and used. model_hint: the architecture
    where there is no model; None: what the first source says.
    """

    sources: tuple[Path, ...]
    layer_base: LayerBase | None = None
    convention: SourceConvention | None = None
    layers: tuple[int, int] | None = None
    weights: tuple[float, ...] | None = None
    normalise: bool = False
    scale: float = 1.0
    model: ModelInfo | None = None
    model_hint: str | None = None

    def __post_init__(self) -> None:
        """Raise SettingsError for values that contradict each other."""
        if not 1 <= len(self.sources) <= _MAX_SOURCES:
            raise SettingsError(
                f"{len(self.sources)} sources were given; expected 1 to {_MAX_SOURCES}"
            )
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise SettingsError(
                f"{len(self.weights)} weights for {len(self.sources)} sources; give one each, as "
                "in --weights 1,0.5"
            )
        for name, value in [("scale", self.scale), *(("weight", w) for w in self.weights or ())]:
            if not math.isfinite(value) or value == 0:
                raise SettingsError(f"a {name} of {value!r}; expected a number other than 0")
        if self.layers is not None and not 1 <= self.layers[0] <= self.layers[1]:
            first, last = self.layers
            raise SettingsError(
                f"layers {first}-{last}: expected A-B with 1 <= A <= B (blocks are counted from "
                "0, and llama.cpp cannot steer the first)"
            )


@dataclass(frozen=True, slots=True)
class ConvertedVector:
    """The result. notes: what was left out or is unusual, one line each."""

    vector: ControlVector
    notes: tuple[str, ...]


def convert_vector(request: VectorRequest) -> ConvertedVector:
    """Read the sources and return their weighted sum as a control vector.

    Its metadata says what it was made from. Raises VectorFileError, SettingsError, InputError.
    """
    sources = [
        read_source(path, layer_base=request.layer_base, convention=request.convention)
        for path in request.sources
    ]
    placed = [
        place_on_blocks(source, model=request.model, layers=request.layers) for source in sources
    ]
    _check_alike(sources, placed)
    n_layer = max(part.n_layer for part in placed)
    if request.layers is not None and request.layers[1] >= n_layer:
        raise VectorFileError(
            f"cannot make a control vector: layers up to {request.layers[1]} were asked for, and "
            f"there are {n_layer} (0 to {n_layer - 1}); lower --layers"
        )
    weights = request.weights or (1.0,) * len(sources)
    matrix = np.zeros((n_layer, sources[0].n_embd))
    with np.errstate(over="ignore", invalid="ignore"):  # not finite: refused by ControlVector
        for part, weight in zip(placed, weights, strict=True):
            for block, row in part.by_block.items():
                matrix[block] += weight * (_unit(row) if request.normalise else row)
    if not matrix.any():
        raise VectorFileError(
            "cannot make a control vector: no direction is left on blocks that llama.cpp can "
            "steer; check --layer-base, --layers and --weights"
        )
    vector = matrix_to_control_vector(
        matrix, model_hint=_hint(request, sources), scale=request.scale
    )
    if not vector.directions.any():
        raise VectorFileError(
            "cannot make a control vector: every number is 0 once it is float32; raise --scale"
        )
    vector = ControlVector(
        vector.directions,
        vector.model_hint,
        metadata={"made_from": _provenance(request, sources, weights)},
    )
    notes = [note for part in placed for note in part.notes]
    if request.scale < 0 or any(weight < 0 for weight in weights):
        notes.append("a direction was turned around by a negative scale or weight, as asked")
    return ConvertedVector(vector, tuple(notes))


def _unit(row: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = float(np.abs(row).max())
    if largest == 0:
        return row
    row = row / largest  # so that squares neither overflow nor vanish
    return row / np.linalg.norm(row)


def _check_alike(sources: Sequence[VectorSource], placed: Sequence[BlockDirections]) -> None:
    """Refuse sources of different models, as far as their shapes tell."""
    first = sources[0]
    for source, part in zip(sources[1:], placed[1:], strict=True):
        if source.n_embd != first.n_embd:
            raise VectorFileError(
                f"cannot add {source.path.name!r} ({source.n_embd} wide) to {first.path.name!r} "
                f"({first.n_embd} wide); use vectors of one model"
            )
        both_say = source.n_rows is not None and first.n_rows is not None
        if both_say and part.n_layer != placed[0].n_layer:
            raise VectorFileError(
                f"cannot add {source.path.name!r} ({part.n_layer} layers) to {first.path.name!r} "
                f"({placed[0].n_layer} layers); use vectors of one model"
            )


def _hint(request: VectorRequest, sources: Sequence[VectorSource]) -> str:
    """Return the architecture that the vector is for, as llama.cpp names it."""
    if request.model is not None:
        return request.model.architecture
    hint = request.model_hint or next((s.model_hint for s in sources if s.model_hint), "")
    if not hint:
        raise SettingsError(
            "which architecture is the vector for? pass the model with --model, or its "
            "architecture with --hint, as in --hint llama"
        )
    return hint


def _provenance(
    request: VectorRequest, sources: Sequence[VectorSource], weights: Sequence[float]
) -> str:
    parts = [
        {
            "file": source.path.name[:100],
            "sha256": source.sha256,
            "layer_base": source.layer_base,
            "weight": weight,
        }
        for source, weight in zip(sources, weights, strict=True)
    ]
    return json.dumps(
        {"sources": parts, "normalised": request.normalise, "scale": request.scale}, sort_keys=True
    )
