"""Files of directions as named float64 arrays: .npy, .npz, .safetensors, .pt.

What others publish may lie about its sizes: a header is checked against the bytes that are really
there before anything is allocated, here for .npy and in `tensor_files` for the rest.
"""

from __future__ import annotations

import math
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.converters.tensor_files import read_npz, read_safetensors
from safesteer_edge.converters.vector_torch import read_torch
from safesteer_edge.errors import VectorFileError

MAX_ELEMENTS: Final = 512 * 65_536  # LLAMA_MAX_LAYERS rows, as wide as a control vector may be
# What NumPy's reader of headers raises; it tokenizes those that it cannot parse.
_HEADER_ERRORS: Final = (
    *(ValueError, KeyError, SyntaxError, TypeError, EOFError),
    *(RecursionError, tokenize.TokenError),
)
ARRAY_SUFFIXES: Final = (".npy", ".npz", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """What a file holds. arrays: float64, by name. texts: what it says about itself."""

    path: Path
    arrays: Mapping[str, NDArray[np.float64]]
    texts: Mapping[str, str] = field(default_factory=dict[str, str])


def unusable(
    path: Path, problem: str, remedy: str = "save it again, or get it again"
) -> VectorFileError:
    """Return the error to raise about a file that arrays are read from."""
    return VectorFileError(f"cannot use {str(path)!r}: {problem}; {remedy}")


def read_arrays(path: Path) -> ArrayFile:
    """Read a file of one of ARRAY_SUFFIXES; the one array of a .npy or a bare tensor is ''.

    Raises VectorFileError, or InputError from the readers it shares with probes.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _as_float64(path, {"": _read_npy(path)}, {})
    if suffix in (".pt", ".pth"):
        return _as_float64(path, read_torch(path), {})
    file = read_npz(path) if suffix == ".npz" else read_safetensors(path)
    return _as_float64(path, file.tensors, file.metadata)


def _as_float64(
    path: Path, arrays: Mapping[str, NDArray[Any]], texts: Mapping[str, str]
) -> ArrayFile:
    for array in arrays.values():
        if array.dtype.kind not in "fiu":
            raise unusable(path, f"it holds an array of {array.dtype}; expected real numbers")
    if sum(array.size for array in arrays.values()) > MAX_ELEMENTS:
        raise unusable(path, "it holds more numbers than any control vector has")
    with np.errstate(over="ignore"):  # a long double may overflow: refused later as not finite
        converted = {name: array.astype(np.float64) for name, array in arrays.items()}
    return ArrayFile(path, converted, texts)


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            return _read_npy_stream(path, file, path.stat().st_size)
    except OSError as error:
        raise unusable(path, error.strerror or str(error), "check the path") from error


def _read_npy_stream(path: Path, file: BinaryIO, size_bytes: int) -> NDArray[Any]:
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
    except _HEADER_ERRORS as error:
        raise unusable(path, f"it is no whole NumPy array ({str(error)[:100]})") from error
    if dtype.hasobject:
        raise unusable(
            path,
            "it holds Python objects, which only a pickle could load",
            "save plain arrays: np.savez(path, **{str(layer): direction, ...})",
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    is_whole = n_bytes == size_bytes - file.tell() and all(size >= 0 for size in shape)
    if not is_whole or math.prod(shape) > MAX_ELEMENTS:
        raise unusable(path, f"its header says shape {shape}, and it has {size_bytes} bytes")
    array = np.frombuffer(file.read(n_bytes), dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
