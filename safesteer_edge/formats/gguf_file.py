"""GGUF files, read and checked in pure Python before native code sees them.

`read_gguf` trusts nothing in the file: it is the gate in front of llama.cpp, whose parsers have
had a steady stream of memory-safety bugs. What a header means for a language model or a
projector is for `model_file` and `projector_file` to say.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import ModelFileError
from safesteer_edge.formats.gguf_header import (
    GgufArray,
    GgufLimits,
    GgufTensor,
    GgufValue,
    HeaderCursor,
    read_metadata,
    read_tensor_table,
)

__all__ = ["GgufArray", "GgufFile", "GgufLimits", "GgufTensor", "GgufValue", "read_gguf"]

_MAX_PROBLEM = 300
_DEFAULT_ALIGNMENT = 32
# TENSOR_ALIGNMENT in ggml's CPU backend, which stops the process when a mapped file breaks it.
_LEAST_ALIGNMENT = 32
_NUMPY_TYPES = {"u8": "u1", "i8": "i1", "bool": "u1"} | {
    f"{kind}{bits}": f"<{kind}{bits // 8}" for kind in "uif" for bits in (16, 32, 64)
}
_LOOKALIKES = (
    (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint"),
    (b"\x7fELF", "a Linux program"),
    (b"MZ", "a Windows program"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"lmgg", "a GGML file from before GGUF"),
    (b"fmgg", "a GGML file from before GGUF"),
    (b"tjgg", "a GGML file from before GGUF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!", "a web page"),
    (b"<h", "a web page"),
    (b"{", "JSON"),
)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header. Arrays stay undecoded until they are asked for.

    types: the value type of each metadata key ('u32', 'str', 'arr' …).
    data_offset: where tensor data begins, or where the header ends if there are no tensors.
    header: the file's bytes up to there, so that no second reading can differ from the first.
    parts: the other files of a split model, see `model_file.read_model`.
    """

    path: Path
    version: int
    metadata: Mapping[str, GgufValue]
    types: Mapping[str, str]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    size_bytes: int
    header: bytes = field(repr=False)
    parts: tuple[Path, ...] = ()

    def error(self, problem: str, remedy: str = "download it again") -> ModelFileError:
        """Return the error to raise about this file."""
        shortened = problem[:_MAX_PROBLEM]  # texts in the file can be megabytes long
        return ModelFileError(f"cannot use {str(self.path)!r}: {shortened}; {remedy}")

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises ModelFileError if there is none."""
        architecture = self.text("general.architecture")
        if not architecture:
            raise self.error("it does not say which architecture it is for")
        return architecture

    def text(self, key: str, default: str | None = None) -> str | None:
        """Return a text value. Raises ModelFileError if the value is of another type."""
        value = self.metadata.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.error(f"metadata key {key!r} is of type {self.types[key]}, not a text")
        return value

    def integer(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number. Raises ModelFileError if the value is of another type."""
        value = self.metadata.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.error(f"metadata key {key!r} is of type {self.types[key]}, not an integer")
        return value

    def array(self, key: str) -> GgufArray | None:
        """Return where an array lies, or None. Raises ModelFileError if it is not an array."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, GgufArray):
            raise self.error(f"metadata key {key!r} is of type {self.types[key]}, not an array")
        return value

    def array_bytes(self, key: str) -> bytes:
        """Return an array's raw bytes. Raises ModelFileError if there is no such array."""
        array = self.array(key)
        if array is None:
            raise self.error(f"metadata key {key!r} is missing")
        return self.header[array.offset : array.offset + array.size_bytes]

    def array_sha256(self, key: str) -> str:
        """Return the SHA-256 (lower-case hex) of an array's raw bytes."""
        return hashlib.sha256(self.array_bytes(key)).hexdigest()

    def numbers(self, key: str) -> NDArray[np.generic]:
        """Return an array of numbers or booleans. Raises ModelFileError if it is of texts."""
        raw, array = self.array_bytes(key), self.array(key)
        if array is None or array.element_type not in _NUMPY_TYPES:
            raise self.error(f"metadata key {key!r} is an array of texts, not of numbers")
        return np.frombuffer(raw, dtype=_NUMPY_TYPES[array.element_type])

    def strings(self, key: str) -> list[bytes]:
        """Return an array of texts, undecoded: tokens need not be UTF-8. Takes 15 ms a 100,000."""
        raw, array = self.array_bytes(key), self.array(key)
        if array is None or array.element_type != "str":
            raise self.error(f"metadata key {key!r} is not an array of texts")
        strings: list[bytes] = []
        position, unpack_from = 0, struct.Struct("<Q").unpack_from
        for _ in range(array.length):
            (length,) = unpack_from(raw, position)
            start = position + 8
            position = start + length
            strings.append(raw[start:position])
        return strings

    def read_array(self, key: str) -> list[bool] | list[int] | list[float] | list[str]:
        """Return an array as a list; bytes that are not UTF-8 become U+FFFD."""
        array = self.array(key)
        if array is not None and array.element_type == "str":
            return [text.decode("utf-8", errors="replace") for text in self.strings(key)]
        values = self.numbers(key)
        if array is not None and array.element_type == "bool":
            return [bool(value) for value in values]
        return values.tolist()

    def tensor(self, name: str) -> GgufTensor | None:
        """Return the tensor of that name, or None."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    def tensor_table_sha256(self) -> str:
        """Return the SHA-256 of every tensor's name, shape, type and place in the data.

        Places count from where the data begins, so that metadata (a chat template, a licence)
        can be edited and the file stays the same model.
        """
        digest = hashlib.sha256()
        for tensor in self.tensors:
            place = tensor.offset - self.data_offset
            row = f"{tensor.name} {tensor.shape} {tensor.ggml_type} {place}\n"
            digest.update(row.encode("ascii"))
        return digest.hexdigest()


def read_gguf(
    path: Path, data: bytes | None = None, *, limits: GgufLimits | None = None
) -> GgufFile:
    """Read and check a GGUF file's header; the weights are not read.

    data: the file's content, where it was read before; the path is then a name in messages.
    Takes 20 ms for a vocabulary of 49,152 tokens. Uses a few times the header in memory.
    Raises ModelFileError for anything that is not a sound GGUF v2 or v3 file.
    """
    if data is not None:
        return _read_open_file(io.BytesIO(data), path, limits or GgufLimits())
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            raise ModelFileError(f"cannot read {str(path)!r}: it is {kind}; name a .gguf file")
        with path.open("rb", buffering=0) as file:
            return _read_open_file(file, path, limits or GgufLimits())
    except FileNotFoundError as error:
        raise ModelFileError(f"cannot read {str(path)!r}: no such file; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise ModelFileError(
            f"cannot read {str(path)!r}: {error}; check the path and its permissions"
        ) from error


def _read_open_file(file: BinaryIO, path: Path, limits: GgufLimits) -> GgufFile:
    size_bytes = file.seek(0, 2)
    file.seek(0)
    cursor = HeaderCursor(file, path, size_bytes, limits)
    _check_magic(cursor)
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise cursor.error("it is a big-endian GGUF file", "get the little-endian one")
    if version not in (2, 3):
        raise cursor.error(f"it is GGUF version {version}; versions 2 and 3 can be read")
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    if n_tensors > limits.n_tensors or n_keys > limits.n_keys:
        raise cursor.error(f"its header speaks of {n_tensors} tensors and {n_keys} metadata keys")
    typed = read_metadata(cursor, n_keys)
    alignment = _alignment(cursor, typed)
    tensors = read_tensor_table(cursor, n_tensors, alignment)
    return GgufFile(
        path=path,
        version=version,
        metadata=MappingProxyType({key: value for key, (_, value) in typed.items()}),
        types=MappingProxyType({key: type_name for key, (type_name, _) in typed.items()}),
        tensors=tuple(tensors),
        data_offset=cursor.position,
        size_bytes=size_bytes,
        header=bytes(cursor.buffered(cursor.position)[: cursor.position]),
    )


def _check_magic(cursor: HeaderCursor) -> None:
    """Raise ModelFileError, saying what the file looks like, unless it starts with GGUF."""
    if cursor.size_bytes == 0:
        raise cursor.error("the file is empty")
    start = cursor.take(min(cursor.size_bytes, 32))
    cursor.position = 4
    if start[:4] == b"GGUF":
        return
    looks = next((what for magic, what in _LOOKALIKES if start.startswith(magic)), None)
    if looks is None and start[8:9] == b"{":
        looks = "a safetensors file"
    described = f"{start[:4]!r}" + (f", {looks}" if looks else "")
    raise cursor.error(
        f"not a GGUF file (starts with {described})", "name a .gguf file, or download it again"
    )


def _alignment(cursor: HeaderCursor, typed: Mapping[str, tuple[str, GgufValue]]) -> int:
    type_name, value = typed.get("general.alignment", ("u32", _DEFAULT_ALIGNMENT))
    if (
        type_name != "u32"
        or not isinstance(value, int)
        or not _LEAST_ALIGNMENT <= value <= cursor.limits.alignment
        or value & (value - 1)
    ):
        raise cursor.error(
            f"its alignment is {value!r}; expected a power of two from {_LEAST_ALIGNMENT} "
            f"to {cursor.limits.alignment}"
        )
    return value


# -- A small GGUF v3 file of texts, counts and F32 tensors, as bytes -------------------------------

_ALIGNMENT = 32
_U32_TYPE, _STRING_TYPE, _F32_TENSOR = 4, 8, 0


def encode_gguf(
    metadata: Mapping[str, str | int],
    tensors: Sequence[tuple[str, NDArray[np.float32]]],
) -> bytes:
    """Return the file's bytes; the same arguments give the same bytes.

    metadata: texts, and whole numbers that are written as u32. tensors: (name, 1-D array).
    Source: github.com/ggml-org/ggml, docs/gguf.md.
    """
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key)
        if isinstance(value, str):
            header += struct.pack("<I", _STRING_TYPE) + _string(value)
        else:
            header += struct.pack("<II", _U32_TYPE, value)
    offset = 0
    for name, values in tensors:
        header += _string(name) + struct.pack("<IQIQ", 1, values.size, _F32_TENSOR, offset)
        offset += _padded(4 * values.size)
    header += bytes(_padded(len(header)) - len(header))
    return bytes(header) + b"".join(_tensor_bytes(values) for _, values in tensors)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _tensor_bytes(values: NDArray[np.float32]) -> bytes:
    raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return raw + bytes(_padded(len(raw)) - len(raw))


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % _ALIGNMENT
