"""Files of other people's arrays: zip members, .npz, .npy and safetensors. None can hold code.

What is published may lie about its sizes: all limits are checked before anything is unpacked or
allocated. Format of safetensors: 8 bytes of length, a JSON header, then the numbers
(huggingface.co/docs/safetensors). Read here, because its NumPy reader has no bfloat16.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import InputError
from safesteer_edge.formats.atomic_write import atomic_write

Array = NDArray[Any]

MAX_BYTES: Final = 512 << 20  # a 4096-wide probe has 16 KiB, a 70B model's full PCA 256 MiB
_MAX_MEMBERS = 4096
_MAX_HEADER_BYTES = 16 << 20
_METADATA_KEY = "__metadata__"
_BFLOAT16: Final = "BF16"
_DTYPES: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file's arrays by name, in its order, and its texts."""

    tensors: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file in the zip. is_stored: it is not compressed."""

    data: bytes
    is_stored: bool


def unreadable(path: Path, problem: str, remedy: str = "save it again") -> InputError:
    """Return the error for a source file that cannot be read."""
    return InputError(f"cannot read {str(path)!r}: {problem[:300]}; {remedy}")


def read_bytes(
    path: Path, *, max_bytes: int = MAX_BYTES, remedy: str = "save the probe alone"
) -> bytes:
    """Return a file of at most so many bytes. Raises InputError."""
    try:
        if path.stat().st_size > max_bytes:
            raise unreadable(path, f"it has more than {max_bytes} bytes", remedy)
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "check the path") from error


def read_zip_members(path: Path) -> Mapping[str, ZipMember]:
    """Return all members by name.

    Raises InputError for what is no zip, is damaged, encrypted or larger than 512 MiB unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_zip(path, entries)
            return {
                entry.filename: ZipMember(
                    archive.read(entry), entry.compress_type == zipfile.ZIP_STORED
                )
                for entry in entries
            }
    except FileNotFoundError as error:
        raise unreadable(path, "there is no such file", "check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: encrypted; also NotImplementedError, for methods that zipfile lacks
        raise unreadable(path, f"it is not a whole zip file ({error})") from error


def read_safetensors(path: Path) -> TensorFile:
    """Read a safetensors file; bfloat16 becomes float32. Raises InputError."""
    data = read_bytes(path)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise unreadable(path, "it is not a whole safetensors file")
    try:
        header: Any = json.loads(data[8 : 8 + length])
        entries = dict(header)
        metadata = {str(key): str(text) for key, text in entries.pop(_METADATA_KEY, {}).items()}
        body = memoryview(data)[8 + length :]
        tensors = {str(name): _tensor(entry, body) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, f"its header does not fit what follows ({error})") from error
    return TensorFile(tensors, metadata)


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers that 16 bits stand for: the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_safetensors(path: Path, file: TensorFile) -> None:
    """Write float32 and float64 arrays; the same content gives the same bytes. Raises OSError."""
    header: dict[str, Any] = {_METADATA_KEY: dict(file.metadata)} if file.metadata else {}
    names = {np.dtype("<f4"): "F32", np.dtype("<f8"): "F64"}
    parts: list[bytes] = []
    offset = 0
    for name, tensor in file.tensors.items():
        part = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(part)],
        }
        offset += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with atomic_write(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_npz(path: Path) -> TensorFile:
    """Read an .npz file without pickles; arrays of text become metadata. Raises InputError."""
    tensors: dict[str, Array] = {}
    metadata: dict[str, str] = {}
    for member, content in read_zip_members(path).items():
        name = member.removesuffix(".npy")
        array = _npy(path, name, content.data)
        if array.dtype.kind == "U" and array.size == 1:
            metadata[name] = str(array.reshape(-1)[0])
        else:
            tensors[name] = array
    return TensorFile(tensors, metadata)


def read_npy(path: Path) -> Array:
    """Read an .npy file without pickles. Raises InputError."""
    return _npy(path, path.name, read_bytes(path))


def write_npz(path: Path, file: TensorFile) -> None:
    """Write arrays and texts for `read_npz`. Raises OSError."""
    texts = {name: np.array(text) for name, text in file.metadata.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(file.tensors), **texts)
    with atomic_write(path, "wb") as out:
        out.write(buffer.getvalue())


def _tensor(entry: Any, body: memoryview) -> Array:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numpy_dtype = np.dtype(_DTYPES[dtype])
    whole = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
    if not whole or end > len(body) or end - begin != math.prod(shape) * numpy_dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} lies at {begin} to {end}")
    array = np.frombuffer(body[begin:end], numpy_dtype).reshape(shape)
    return bfloat16_to_float32(array) if dtype == _BFLOAT16 else array


def _npy(path: Path, name: str, data: bytes) -> Array:
    """Parse one .npy, after checking that its header speaks of as many numbers as there are."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"it has version {version}")
        shape, _, dtype = readers[version](stream)
        if dtype.hasobject:
            raise unreadable(
                path,
                f"array {name!r} holds Python objects, which only a pickle could load",
                "save plain numbers: np.savez(path, w=w, b=b)",
            )
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError(f"its shape is {shape}, and it has {len(data) - stream.tell()} bytes")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, SyntaxError, TypeError, EOFError, RecursionError, TokenError) as error:
        # NumPy takes headers apart with Python's own tokenizer
        raise unreadable(path, f"array {name!r} is damaged ({error})") from error


def _check_zip(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MAX_MEMBERS:
        raise unreadable(path, f"it has {len(entries)} members; expected at most {_MAX_MEMBERS}")
    if len({entry.filename for entry in entries}) != len(entries):
        raise unreadable(path, "two of its members have the same name")
    size_bytes = sum(entry.file_size for entry in entries)
    if size_bytes > MAX_BYTES:
        raise unreadable(
            path,
            f"it unpacks to {size_bytes} bytes; expected at most {MAX_BYTES}",
            "save the probe alone",
        )
