"""From a source's layer numbers to llama.cpp's blocks, where an error of one goes unnoticed.

numbering   number k is                          block
0           the output of block k                k
1           the output of block k − 1            k − 1
embedding   Hugging Face's hidden_states[k]      k − 1; entry 0 is the embedding, and the last one
                                                 was taken after the final norm: neither is a
                                                 block's output

A vector that lands one block off still steers, only worse, and nothing raises an error
(tests/converters/test_vector_llama_cpp.py measures where each one lands).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.vector_source import VectorSource
from safesteer_edge.errors import VectorFileError
from safesteer_edge.formats.model_file import ModelInfo

_EMBEDDING = -1  # the "block" before the first


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
    if model is not None and source.n_embd != model.n_embd:
        raise _misfit(
            f"{name} has directions of {source.n_embd} numbers; {model.path.name!r} is "
            f"{model.n_embd} wide",
            "use the vector of this model",
        )
    offset = 0 if source.layer_base == "0" else 1
    by_block = {number - offset: row for number, row in source.rows.items()}
    n_layer = _count_layers(source, by_block, model)
    _check_finite(source, by_block, offset)
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


def _check_finite(
    source: VectorSource, by_block: Mapping[int, NDArray[np.float64]], offset: int
) -> None:
    for block, row in by_block.items():
        if not np.isfinite(row).all():
            raise _misfit(
                f"the direction of layer {block + offset} in {source.path.name!r} is not finite",
                "derive the vector again",
            )


def _misfit(problem: str, remedy: str) -> VectorFileError:
    return VectorFileError(f"cannot make a control vector: {problem}; {remedy}")
