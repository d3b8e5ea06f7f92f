"""One control vector from one or several sources: placed, normalised, weighted, summed, scaled.

Placing leads from a source's layer numbers to llama.cpp's blocks, where an error of one goes
unnoticed.

numbering   number k is                          block
0           the output of block k                k
1           the output of block k − 1            k − 1
embedding   Hugging Face's hidden_states[k]      k − 1; entry 0 is the embedding, and the last one
                                                 was taken after the final norm: neither is a
                                                 block's output
any         −1, −2 …                             counted from the last of the model's numbers

A vector that lands one block off still steers, only worse, and nothing raises an error
(tests/converters/test_vector_llama_cpp.py measures where each one lands).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
_EMBEDDING = -1  # the "block" before the first


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
    with np.errstate(over="ignore"):  # what becomes infinite is refused by ControlVector
        directions = (matrix * request.scale).astype(np.float32)
    made_from = _provenance(request, sources, weights)
    vector = ControlVector(directions, _hint(request, sources), metadata={"made_from": made_from})
    if not directions.any():
        raise VectorFileError(
            "cannot make a control vector: every number is 0 once it is float32; raise --scale"
        )
    notes = [note for part in placed for note in part.notes]
    notes += [
        f"{source.path.name!r} says that it is for {source.model_hint!r} models; the vector is for "
        f"{vector.model_hint!r}, as asked"
        for source in sources
        if source.model_hint not in ("", vector.model_hint)
    ]
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


# -- layer numbers to blocks -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class BlockDirections:
    """Directions by block (0-based), blocks that cannot be steered left out.

    n_layer: of the model where it is known, else as far as the source goes. notes: one line each.
    """

    by_block: Mapping[int, NDArray[np.float64]]
    n_layer: int
    notes: tuple[str, ...]


def place_on_blocks(
    source: VectorSource, *, model: ModelInfo | None, layers: tuple[int, int] | None
) -> BlockDirections:
    """Find the block that each direction belongs to.

    model: None where no file was named; layers: the blocks that are wanted, both included.
    Raises VectorFileError where the model has no such layer or another width, where a number is
    not finite, and where a wanted direction is no block's output.
    """
    name = repr(source.path.name)
    source = _counted_from_first(source, model)
    if model is not None and source.n_embd != model.n_embd:
        raise _misfit(
            f"{name} has directions of {source.n_embd} numbers; {model.path.name!r} is "
            f"{model.n_embd} wide",
            "use the vector of this model",
        )
    offset = 0 if source.layer_base == "0" else 1
    by_block = {number - offset: row for number, row in source.rows.items()}
    n_layer = _count_layers(source, by_block, model)
    for block, row in by_block.items():
        if not np.isfinite(row).all():
            raise _misfit(
                f"the direction of layer {block + offset} in {name} is not finite",
                "derive the vector again",
            )
    notes: list[str] = []
    kept: dict[int, NDArray[np.float64]] = {}
    for block, row in sorted(by_block.items()):
        if layers is not None and not layers[0] <= block <= layers[1]:
            continue
        note = _why_left_out(source, block, n_layer)
        if not note:
            kept[block] = row
        elif row.any():
            notes.append(note)
    if source.measures_final_norm and model is not None and n_layer - 1 in kept:
        notes.append(
            f"{name}: repeng measures the last block ({n_layer - 1}) after the final norm; leave "
            f"it out with --layers 1-{n_layer - 2}"
        )
    return BlockDirections(kept, n_layer, tuple(notes))


def _counted_from_first(source: VectorSource, model: ModelInfo | None) -> VectorSource:
    """The same with the numbers that negative ones stand for, which the model tells."""
    if min(source.rows) >= 0:
        return source
    name = repr(source.path.name)
    if model is None:
        raise _misfit(
            f"{name} has a direction for layer {min(source.rows)}, counted from the last",
            "pass the model with --model",
        )
    n_numbers = model.n_layer + (source.layer_base != "0")
    rows: dict[int, NDArray[np.float64]] = {}
    for number, row in source.rows.items():
        counted = number + n_numbers if number < 0 else number
        if counted < 0 or counted in rows:
            raise _misfit(
                f"{name} has a direction for layer {number}, which {model.path.name!r} (of "
                f"{model.n_layer} layers) has not, or has by another number too",
                "use the vector of this model, and check --layer-base",
            )
        rows[counted] = row
    return replace(source, rows=rows)


def _count_layers(
    source: VectorSource, by_block: Mapping[int, NDArray[np.float64]], model: ModelInfo | None
) -> int:
    """Return n_layer; raise VectorFileError if the source's own is another."""
    is_embedding = source.layer_base == "embedding"
    name = repr(source.path.name)
    own = None if source.n_rows is None else source.n_rows - is_embedding
    if model is None:
        if own is None and is_embedding:
            raise _misfit(
                f"{name} names its layers, so which entry of hidden_states is the last one, after "
                "the final norm, is not known",
                "pass the model with --model",
            )
        return max(own if own is not None else max(by_block) + 1, 2)
    if own is not None and own != model.n_layer:
        rows = f"{source.n_rows} rows" + (" (with the embedding's)" if is_embedding else "")
        raise _misfit(
            f"{name} has {rows}; {model.path.name!r} has {model.n_layer} layers",
            "use the vector of this model, and check --layer-base",
        )
    last = max(by_block)
    if last >= model.n_layer:
        number = max(source.rows)
        raise _misfit(
            f"{name} has a direction for layer {number}, numbered as --layer-base "
            f"{source.layer_base} says; {model.path.name!r} has {model.n_layer} layers",
            "use the vector of this model, and check --layer-base",
        )
    return model.n_layer


def _why_left_out(source: VectorSource, block: int, n_layer: int) -> str:
    """Say why a direction cannot be used; '' if it can.

    Raises VectorFileError where it looks usable and is not.
    """
    name = repr(source.path.name)
    if block == _EMBEDDING:
        if source.layer_base == "embedding":
            return f"{name}: entry 0 is the embedding's, which no block puts out: left out"
        raise _misfit(f"{name} has a layer 0, and --layer-base 1", "check --layer-base")
    if block == 0:
        return f"{name}: llama.cpp cannot steer the first block: its direction is left out"
    if source.layer_base == "embedding" and block == n_layer - 1:
        raise _misfit(
            f"{name}: entry {n_layer} of hidden_states is taken after the final norm, so it is not "
            f"the output of block {n_layer - 1}",
            f"leave it out with --layers 1-{n_layer - 2}",
        )
    return ""


def _misfit(problem: str, remedy: str) -> VectorFileError:
    return VectorFileError(f"cannot make a control vector: {problem}; {remedy}")
