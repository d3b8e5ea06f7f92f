"""Files of named arrays, read with bounds and without ever unpickling: .npy, .npz, .safetensors.

What others publish may lie about its sizes: a header is checked against the bytes that are really
there before anything is allocated. PyTorch's files are read in `vector_torch`.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import VectorFileError

MAX_ELEMENTS: Final = 512 * 65_536  # LLAMA_MAX_LAYERS rows, as wide as a control vector may be
MAX_ARRAYS: Final = 2048
_MAX_FILE_BYTES = 8 * MAX_ELEMENTS + (1 << 20)
_MAX_HEADER_BYTES = 1 << 20
_MAX_TEXT_BYTES = 16_384
_SAFETENSORS_TYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


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


def check_size(path: Path) -> int:
    """Return the file's size in bytes. Raises VectorFileError if it is not there or too large."""
    try:
        if not path.is_file():
            raise unusable(path, "there is no such file", "check the path")
        size_bytes = path.stat().st_size
    except OSError as error:
        raise unusable(path, error.strerror or str(error), "check the path") from error
    if size_bytes > _MAX_FILE_BYTES:
        raise unusable(path, f"it has {size_bytes} bytes; expected at most {_MAX_FILE_BYTES}")
    return size_bytes


def read_npy(path: Path) -> ArrayFile:
    """Read a .npy file; its array is named ''. Raises VectorFileError."""
    size_bytes = check_size(path)
    try:
        with path.open("rb") as file:
            array = _read_npy_stream(path, file, size_bytes)
    except OSError as error:
        raise unusable(path, error.strerror or str(error)) from error
    if isinstance(array, str):
        raise unusable(path, "it holds a text, not numbers")
    return ArrayFile(path, {"": array})


def read_npz(path: Path) -> ArrayFile:
    """Read a .npz file; arrays of one text become texts. Raises VectorFileError."""
    check_size(path)
    arrays: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_declared_sizes(path, entries)
            for entry in entries:
                with archive.open(entry) as file:
                    value = _read_npy_stream(path, cast(BinaryIO, file), entry.file_size)
                name = entry.filename.removesuffix(".npy")
                if isinstance(value, str):
                    texts[name] = value
                else:
                    arrays[name] = value
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        # zlib.error is none of these, and is met below
        raise unusable(path, f"not a complete .npz archive ({error})") from error
    except Exception as error:
        if isinstance(error, VectorFileError):
            raise
        raise unusable(path, f"its archive is damaged ({error})") from error
    return ArrayFile(path, arrays, texts)


def check_declared_sizes(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would unpack to more than any control vector needs."""
    if len(entries) > MAX_ARRAYS:
        raise unusable(path, f"it has {len(entries)} entries; expected at most {MAX_ARRAYS}")
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > _MAX_FILE_BYTES:
        raise unusable(
            path, f"it unpacks to {total_bytes} bytes; expected at most {_MAX_FILE_BYTES}"
        )


def read_safetensors(path: Path) -> ArrayFile:
    """Read a .safetensors file of float tensors. Raises VectorFileError.

    Source: github.com/huggingface/safetensors, README ("Format").
    """
    size_bytes = check_size(path)
    try:
        with path.open("rb") as file:
            header_bytes = _safetensors_header(path, file, size_bytes)
            header = _parsed_header(path, header_bytes)
            texts = _string_mapping(path, header.pop("__metadata__", {}))
            data_start = 8 + len(header_bytes)
            if len(header) > MAX_ARRAYS:
                raise unusable(path, f"it has {len(header)} tensors; expected {MAX_ARRAYS} at most")
            arrays = {
                name: _safetensor(path, file, name, entry, data_start, size_bytes)
                for name, entry in header.items()
            }
    except OSError as error:
        raise unusable(path, error.strerror or str(error)) from error
    return ArrayFile(path, arrays, texts)


def _read_npy_stream(path: Path, file: BinaryIO, size_bytes: int) -> NDArray[np.float64] | str:
    """Return the array (a text if it is one) in a stream of .npy bytes, its sizes checked."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise unusable(path, f"not a NumPy array ({str(error)[:100]})") from error
    if dtype.hasobject:
        raise unusable(
            path,
            "it holds Python objects, which only unpickling could read, and a pickle can run code",
            "save plain arrays: numpy.savez(path, **{str(layer): direction, ...})",
        )
    n_elements = math.prod(shape)
    if n_elements * dtype.itemsize > size_bytes or n_elements > MAX_ELEMENTS:
        raise unusable(path, f"it claims an array of shape {shape}, more than it holds")
    raw = file.read(n_elements * dtype.itemsize)
    if len(raw) != n_elements * dtype.itemsize:
        raise unusable(path, "it ends in the middle of an array")
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if is_fortran else "C")
    if dtype.kind == "U" and array.ndim == 0 and dtype.itemsize <= _MAX_TEXT_BYTES:
        return str(array)
    return _as_float64(path, array)


def _as_float64(path: Path, array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.kind not in "fiu":
        raise unusable(path, f"it holds an array of {array.dtype}; expected real numbers")
    with np.errstate(over="ignore"):  # a long double may overflow: refused later as not finite
        return array.astype(np.float64)


def _safetensors_header(path: Path, file: BinaryIO, size_bytes: int) -> bytes:
    prefix = file.read(8)
    n_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= n_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
        raise unusable(path, "not a safetensors file: its header does not fit into it")
    return file.read(n_bytes)


def _parsed_header(path: Path, header_bytes: bytes) -> dict[str, Any]:
    try:
        header = json.loads(header_bytes)
    except (ValueError, RecursionError) as error:
        raise unusable(path, "not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise unusable(path, "not a safetensors file: its header is not an object")
    return header


def _string_mapping(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise unusable(path, "its __metadata__ is not an object")
    return {str(key): str(text) for key, text in value.items() if len(str(text)) < _MAX_TEXT_BYTES}


def _safetensor(
    path: Path, file: BinaryIO, name: str, entry: Any, data_start: int, size_bytes: int
) -> NDArray[np.float64]:
    """Return one tensor, after its place in the file was checked."""
    label = f"tensor {name[:60]!r}"
    try:
        type_name, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        is_plain = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise unusable(path, f"{label} is not described as safetensors asks") from error
    if type_name not in _SAFETENSORS_TYPES:
        raise unusable(path, f"{label} is {str(type_name)[:20]!r}; expected F32, F16, BF16 or F64")
    dtype = np.dtype(_SAFETENSORS_TYPES[type_name])
    n_bytes = math.prod(shape) * dtype.itemsize if is_plain else -1
    if n_bytes != end - begin or data_start + end > size_bytes or len(shape) > 8:
        raise unusable(path, f"{label} does not lie inside the file")
    file.seek(data_start + begin)
    raw = np.frombuffer(file.read(n_bytes), dtype).reshape(shape)
    if type_name == "BF16":  # the upper half of a float32
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw.astype(np.float64)
