"""Directions as other programs store them: a matrix of one row per layer, or one per layer number.

What a layer number means differs between programs, and a file rarely says; see
`vector_conversion`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.tensor_files import (
    Array,
    TensorFile,
    read_npy,
    read_npz,
    read_safetensors,
)
from safesteer_edge.converters.torch_checkpoint import read_torch_checkpoint
from safesteer_edge.errors import SettingsError, VectorFileError
from safesteer_edge.formats.control_vector_file import (
    BLOCK_OUTPUT_0BASED,
    UNRECORDED,
    read_directions,
)

LayerBase = Literal["0", "1", "embedding"]
SourceConvention = Literal["repeng", "cvector-generator"]

CONVENTION_KEY: Final = "layer_convention"
HINT_KEY: Final = "model_hint"
MAX_LAYER_NUMBER: Final = 512  # LLAMA_MAX_LAYERS blocks, and the embedding

# llama.cpp's generator stores what it read at `l_out-i` as direction.(i+1) (cvector-generator's
# mean.hpp and pca.hpp), which is a numbering from 1; repeng's L is the block itself.
_BASE_OF_CONVENTION: Final[Mapping[SourceConvention, LayerBase]] = {
    "repeng": "0",
    "cvector-generator": "1",
}
MAX_ELEMENTS: Final = 512 * 65_536  # LLAMA_MAX_LAYERS rows, as wide as a control vector may be
_WRAPPERS = ("layer_activations", "directions")  # steering-vectors' field, repeng's
_REMEDY = (
    "save plain tensors: safetensors.torch.save_file({str(layer): direction, ...}, "
    "'vector.safetensors')"
)
_READERS: Final[Mapping[str, Callable[[Path], TensorFile]]] = {
    ".npy": lambda path: TensorFile({"": read_npy(path)}),
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    **dict.fromkeys(
        (".pt", ".pth"),
        lambda path: TensorFile(
            read_torch_checkpoint(path, wrappers=_WRAPPERS, remedy=_REMEDY, may_be_bare=True)
        ),
    ),
}
ARRAY_SUFFIXES: Final = tuple(_READERS)
_PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".svec", ".bin"})
# A minus belongs to the number unless it joins it to a word, as in 'layer-3'.
_LAYER_NAME = re.compile(r"(.*?)((?:(?<![A-Za-z0-9])[-−])?[0-9]{1,4})", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class VectorSource:
    """Directions with the numbering that their file uses.

    rows: float64 (n_embd,) by layer number; a negative one counts from the last. n_rows: of a
    matrix, whose rows are numbered from `layer_base` on, or from 0 where that is 'embedding'; None:
    the file names its layers.
    measures_final_norm: the direction of a model's last block was measured after the final norm.
    """

    path: Path
    sha256: str
    rows: Mapping[int, NDArray[np.float64]]
    n_rows: int | None
    layer_base: LayerBase
    model_hint: str = ""
    measures_final_norm: bool = False

    @property
    def n_embd(self) -> int:
        """The width of a direction."""
        return len(next(iter(self.rows.values())))


def read_source(
    path: Path, *, layer_base: LayerBase | None, convention: SourceConvention | None
) -> VectorSource:
    """Read directions from a file of any known form.

    layer_base, convention: what the user says about numberings; used where the file does not say.
    Raises VectorFileError for a file that is not what it should be, SettingsError where the user
    must say how its layers are numbered, InputError where PyTorch is needed and not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return _read_gguf_source(path, convention)
    if suffix in _PICKLES:
        raise _unusable(
            path,
            f"a {suffix!r} file is a pickle or unknown, and a pickle can run code",
            "save the directions as .safetensors, or with numpy.savez",
        )
    if suffix not in ARRAY_SUFFIXES:
        known = ", ".join([*ARRAY_SUFFIXES, ".gguf"])
        raise _unusable(path, f"its name ends in {suffix!r}", f"expected one of {known}")
    file = read_arrays(path)
    says = file.metadata.get(CONVENTION_KEY, "")
    if says not in ("", BLOCK_OUTPUT_0BASED):
        raise _unusable(path, f"its {CONVENTION_KEY} is {says[:60]!r}")
    base: LayerBase | None = "0" if says else layer_base
    if base is None:
        raise SettingsError(
            f"how are the layers of {str(path)!r} numbered? pass --layer-base 0 (block outputs, "
            "the first block is 0), 1 (the first block is 1), or embedding (Hugging Face's "
            "hidden_states, where entry 0 is the embedding)"
        )
    rows, n_rows = _rows(path, file.tensors, base)
    hint = file.metadata.get(HINT_KEY, "")
    return VectorSource(path, _sha256(path), rows, n_rows, base, hint)


def read_arrays(path: Path) -> TensorFile:
    """Read a file of one of ARRAY_SUFFIXES as float64; the array of a .npy or a bare tensor is ''.

    Raises VectorFileError, or InputError from the readers it shares with probes.
    """
    file = _READERS[path.suffix.lower()](path)
    arrays = file.tensors
    for array in arrays.values():
        if array.dtype.kind not in "fiu":
            raise _unusable(path, f"it holds an array of {array.dtype}; expected real numbers")
    if sum(array.size for array in arrays.values()) > MAX_ELEMENTS:
        raise _unusable(path, "it holds more numbers than any control vector has")
    with np.errstate(over="ignore"):  # a long double may overflow: refused later as not finite
        converted = {name: array.astype(np.float64) for name, array in arrays.items()}
    return TensorFile(converted, file.metadata)


def _read_gguf_source(path: Path, convention: SourceConvention | None) -> VectorSource:
    file = read_directions(path)
    is_recorded = file.layer_convention != UNRECORDED
    if not is_recorded and convention is None:
        raise SettingsError(
            f"{str(path)!r} does not say at which block its directions were measured; pass "
            "--source-convention repeng (direction.N at block N, where llama.cpp applies it) or "
            "cvector-generator (llama.cpp's generator: direction.N at block N - 1)"
        )
    base: LayerBase = "0"
    if not is_recorded:
        base = _BASE_OF_CONVENTION[cast(SourceConvention, convention)]
    rows = {number: row.astype(np.float64) for number, row in file.by_number.items() if row.any()}
    if not rows:
        raise _unusable(path, "all of its directions are zero", "use another vector")
    return VectorSource(
        path,
        _sha256(path),
        rows,
        # Ours holds every block; others leave out what they did not measure.
        max(file.by_number) + 1 if is_recorded else None,
        base,
        file.model_hint,
        measures_final_norm=not is_recorded and convention == "repeng",
    )


def _rows(
    path: Path, arrays: Mapping[str, Array], base: LayerBase
) -> tuple[dict[int, NDArray[np.float64]], int | None]:
    """Return the directions by layer number, and the number of rows of a matrix."""
    if not arrays:
        raise _unusable(path, "it holds no array")
    if len(arrays) == 1:
        name, only = next(iter(arrays.items()))
        if only.ndim == 2 and (len(only) > 1 or not _LAYER_NAME.fullmatch(name)):
            _check_shape(path, only.shape)
            first = 1 if base == "1" else 0
            return dict(enumerate(only, start=first)), len(only)
    return _named_rows(path, arrays), None


def _named_rows(path: Path, arrays: Mapping[str, Array]) -> dict[int, NDArray[np.float64]]:
    """Read {'3': direction}, {'layer_3': …}, {'direction.3': …}: one prefix, then the number."""
    matched = {name: _LAYER_NAME.fullmatch(name) for name in arrays}
    strange = sorted(name for name, match in matched.items() if match is None)
    prefixes = {match[1] for match in matched.values() if match}
    if strange or len(prefixes) != 1:
        names = ", ".join(repr(name[:40]) for name in list(arrays)[:4])
        raise _unusable(
            path,
            f"its arrays are named {names}",
            "expected one (n_layer, n_embd) matrix, or one direction per layer named by its number",
        )
    rows: dict[int, NDArray[np.float64]] = {}
    for name, match in matched.items():
        number = int(match[2].replace("−", "-")) if match else 0
        if number in rows or abs(number) > MAX_LAYER_NUMBER:
            raise _unusable(path, f"array {name[:40]!r} names layer {number} again or too far")
        row = arrays[name]
        rows[number] = row[0] if row.ndim == 2 and len(row) == 1 else row
        if rows[number].ndim != 1:
            raise _unusable(path, f"array {name[:40]!r} has shape {row.shape}; expected (n_embd,)")
    widths = sorted({len(row) for row in rows.values()})
    if len(widths) != 1:
        raise _unusable(path, f"its directions have {widths} numbers; expected one width")
    _check_shape(path, (len(rows), widths[0]))
    return rows


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if not 1 <= shape[0] <= MAX_LAYER_NUMBER + 1 or not 1 <= shape[1] <= 65_536:
        raise _unusable(path, f"it has shape {shape}; expected (n_layer, n_embd)")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _unusable(
    path: Path, problem: str, remedy: str = "save it again, or get it again"
) -> VectorFileError:
    """Return the error to raise about a file that arrays are read from."""
    return VectorFileError(f"cannot use {str(path)!r}: {problem}; {remedy}")
