"""Control vectors: one direction per block, in the GGUF form that llama.cpp applies.

`direction.N` is added to the output of block N, counted from 0; so there is none for block 0
(llama.cpp's src/llama-adapter.cpp, confirmed by measuring `l_out-N`). llama.cpp's own reader
(common_control_vector_load_one) looks at no metadata, adds up duplicates, and takes
"direction.5.foo" for block 5; this one does not.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ModelFileError, VectorFileError
from safesteer_edge.formats.atomic_write import write_whole
from safesteer_edge.formats.gguf_file import GgufFile, encode_gguf, read_gguf
from safesteer_edge.formats.gguf_header import FLOAT_TYPES, GgufTensor

BLOCK_OUTPUT_0BASED: Final = "block_output_0based"
UNRECORDED: Final = ""
"""The layer convention of files that other programs made."""

_ARCHITECTURE = "controlvector"
_HINT_KEY = "controlvector.model_hint"
_COUNT_KEY = "controlvector.layer_count"
_CONVENTION_KEY = "safesteer.layer_convention"
_PREFIX = "safesteer."
# Not the key that is ours, nor one that this reader refuses.
_METADATA_KEY = re.compile(r"(?!layer_convention$)(?!(.*\.)?mode$)[A-Za-z0-9_.\-]{1,200}")
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,2})")
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
_MAX_EMBEDDING_LENGTH = 65_536
_REMEDY = "name another control vector, or make this one again"


@dataclass(frozen=True, slots=True, eq=False)
class ControlVector:
    """One direction per block of a model.

    directions: float32 (n_layer, n_embd), finite; row L is added to the output of block L
    (0-based), so row 0 is zero. A copy is kept, read-only.
    model_hint: the architecture it was made for. layer_convention: 'block_output_0based' where
    row L was also measured at the output of block L, UNRECORDED where the file does not say.
    metadata: texts, stored under 'safesteer.'.
    """

    directions: NDArray[np.float32]
    model_hint: str
    layer_convention: str = BLOCK_OUTPUT_0BASED
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        """Raise VectorFileError unless the values are as documented."""
        directions = np.array(self.directions, dtype=np.float32, order="C")
        problem = _problem_with(directions)
        if problem is None and self.layer_convention not in (BLOCK_OUTPUT_0BASED, UNRECORDED):
            problem = f"its layer convention is {self.layer_convention[:50]!r}"
        for key, value in [("model_hint", self.model_hint), *self.metadata.items()]:
            if not _METADATA_KEY.fullmatch(key) or not _is_storable(value):
                problem = f"its metadata entry {key[:50]!r} cannot be stored"
        if problem:
            raise VectorFileError(f"cannot use the control vector: {problem}; make it again")
        directions.setflags(write=False)
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "metadata", dict(self.metadata))

    @property
    def n_layer(self) -> int:
        """The number of rows; the model has at least as many blocks."""
        return len(self.directions)

    @property
    def n_embd(self) -> int:
        """The width of a direction."""
        return int(self.directions.shape[1])


def _is_storable(text: str) -> bool:
    """Tell whether a text has no NUL, at which C would end it, and no half of a character."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _problem_with(directions: NDArray[np.float32]) -> str | None:
    if directions.ndim != 2:
        return f"its directions have shape {directions.shape}; expected (n_layer, n_embd)"
    n_layer, n_embd = directions.shape
    if not 2 <= n_layer <= _MAX_LAYERS or not 1 <= n_embd <= _MAX_EMBEDDING_LENGTH:
        return f"it has {n_layer} layers of {n_embd} numbers"
    if not np.isfinite(directions).all():
        return "a direction is not finite"
    if directions[0].any():
        return "row 0 is not zero, and llama.cpp cannot steer the first block"
    return None


def write_control_vector(path: Path, vector: ControlVector) -> None:
    """Write a control vector, or leave the file that is there as it is.

    All of the rows after row 0 are written, zero ones as well, so that reading gives n_layer.
    Raises OSError where the folder cannot be written.
    """
    metadata: dict[str, str | int] = {
        "general.architecture": _ARCHITECTURE,
        _HINT_KEY: vector.model_hint,
        _COUNT_KEY: vector.n_layer - 1,  # as repeng counts: the directions, not the blocks
    }
    if vector.layer_convention != UNRECORDED:
        metadata[_CONVENTION_KEY] = vector.layer_convention
    metadata |= {f"{_PREFIX}{key}": value for key, value in vector.metadata.items()}
    tensors = [
        (f"direction.{layer_index}", vector.directions[layer_index])
        for layer_index in range(1, vector.n_layer)
    ]
    write_whole(path, encode_gguf(metadata, tensors))


@dataclass(frozen=True, slots=True, eq=False)
class StoredDirections:
    """What a control vector's file says. by_number: float32 (n_embd,) each, one of 0 as well.

    What the numbers mean, the layer convention says, or nothing does.
    """

    by_number: Mapping[int, NDArray[np.float32]]
    model_hint: str
    layer_convention: str
    metadata: Mapping[str, str]


def read_control_vector(path: Path, data: bytes | None = None) -> ControlVector:
    """Read and check a control vector, of this program or of another.

    Blocks without a direction get zeros; n_layer is the last block with one, plus 1.
    data: the file's content, where it was read, and perhaps hashed, before: it is not read again.
    Raises VectorFileError with the reason and what to do about it.
    """
    stored = read_directions(path, data)
    rows = stored.by_number
    if 0 in rows and rows[0].any():
        raise VectorFileError(
            f"cannot use {str(path)!r}: it has a direction for the first block, which llama.cpp "
            "cannot steer; 'safesteer-edge convert vector' leaves it out"
        )
    directions = np.zeros((max(rows) + 1, len(next(iter(rows.values())))), dtype=np.float32)
    for layer_index, row in rows.items():
        directions[layer_index] = row
    try:
        return ControlVector(
            directions, stored.model_hint, stored.layer_convention, stored.metadata
        )
    except VectorFileError as error:
        raise VectorFileError(f"{str(path)!r}: {error}") from error


def read_directions(path: Path, data: bytes | None = None) -> StoredDirections:
    """Read a control vector's file as it is: F32, F16 or BF16. Arguments and errors: see above."""
    try:
        file = read_gguf(path, data)
        _check_metadata(file)
        by_number: dict[int, NDArray[np.float32]] = {}
        with path.open("rb") if data is None else io.BytesIO(data) as source:
            for number, tensor in _check_tensors(file).items():
                source.seek(tensor.offset)
                raw = source.read(tensor.size_bytes)
                if len(raw) < tensor.size_bytes:
                    raise file.error("the file became shorter while it was read", "try again")
                by_number[number] = _numbers(raw, tensor.type_name)
        return StoredDirections(
            by_number,
            model_hint=file.text(_HINT_KEY) or "",
            layer_convention=file.text(_CONVENTION_KEY) or UNRECORDED,
            metadata={
                key.removeprefix(_PREFIX): file.text(key) or ""
                for key in file.metadata
                if key.startswith(_PREFIX) and key != _CONVENTION_KEY
            },
        )
    except (ModelFileError, OSError) as error:
        raise VectorFileError(str(error)) from error


def _numbers(raw: bytes, type_name: str) -> NDArray[np.float32]:
    if type_name == "BF16":  # the upper half of F32
        return np.frombuffer((np.frombuffer(raw, "<u2").astype("<u4") << 16).tobytes(), "<f4")
    return np.frombuffer(raw, "<f2" if type_name == "F16" else "<f4").astype(np.float32)


def _check_metadata(file: GgufFile) -> None:
    if file.architecture != _ARCHITECTURE:
        raise file.error(f"it is a {file.architecture!r} model, not a control vector", _REMEDY)
    for key in file.metadata:
        if key.endswith(".mode"):  # made for another operation than adding; see 'glp.mode'
            raise file.error(
                f"its metadata key {key!r} asks for another operation than adding directions",
                "use a vector that is meant to be added",
            )
    n_directions = file.integer(_COUNT_KEY)  # u32 from repeng, i32 from llama.cpp's generator
    if n_directions is not None and not len(file.tensors) <= n_directions < _MAX_LAYERS:
        raise file.error(f"it has {len(file.tensors)} directions, and says {n_directions}", _REMEDY)


def _check_tensors(file: GgufFile) -> dict[int, GgufTensor]:
    """Return the tensor of each number."""
    layers: dict[int, GgufTensor] = {}
    for tensor in file.tensors:
        matched = _DIRECTION.fullmatch(tensor.name)
        layer_index = int(matched[1]) if matched else _MAX_LAYERS
        if layer_index >= _MAX_LAYERS:
            raise file.error(f"tensor {tensor.name!r} is not the direction of a block", _REMEDY)
        if tensor.type_name not in FLOAT_TYPES or len(tensor.shape) != 1:
            raise file.error(
                f"tensor {tensor.name!r} is {tensor.type_name} of shape {tensor.shape}; expected "
                f"a row of {', '.join(sorted(FLOAT_TYPES))}",
                _REMEDY,
            )
        layers[layer_index] = tensor
    widths = {tensor.shape[0] for tensor in layers.values()}
    if len(widths) != 1 or max(widths) > _MAX_EMBEDDING_LENGTH:
        raise file.error(f"its directions have {sorted(widths)} numbers", _REMEDY)
    return layers
