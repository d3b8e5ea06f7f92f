"""Seeded damage to good files: the kinds that disks, networks and attackers do."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

from safesteer_edge.formats.gguf_file import GgufFile, read_gguf

_EXTREME_U32 = (0, 1, 2, 3, 255, 256, 1025, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_EXTREME_U64 = (*_EXTREME_U32, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1)


def mutants(data: bytes, n: int, *, seed: int, header_bytes: int) -> Iterator[bytes]:
    """Yield n damaged copies of any file; nine in ten are damaged in the first header_bytes."""
    rng = Random(seed)
    for _ in range(n):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            end = header_bytes if rng.random() < 0.9 else len(damaged)
            _damage(damaged, rng, min(end, len(damaged)))
        yield bytes(damaged)


def _damage(data: bytearray, rng: Random, end: int) -> None:
    if end < 16:
        return
    kind = rng.choice(("flip", "flip", "byte", "extreme", "extreme", "cut", "insert", "delete"))
    position = rng.randrange(end - 8)
    if kind == "flip":
        data[position] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[position] = rng.randrange(256)
    elif kind == "extreme":
        _overwrite(data, position, rng)
    elif kind == "cut":
        del data[rng.randrange(end) :]
    elif kind == "insert":
        data[position:position] = rng.randbytes(rng.choice((1, 4, 8, 64)))
    else:
        del data[position : position + rng.choice((1, 4, 8, 64))]


def _overwrite(data: bytearray, position: int, rng: Random) -> None:
    """Put an extreme number of 4 or 8 bytes somewhere."""
    if rng.random() < 0.5:
        struct.pack_into("<I", data, position, rng.choice(_EXTREME_U32))
    else:
        struct.pack_into("<Q", data, position, rng.choice(_EXTREME_U64))


def gguf_field_mutants(path: Path, n: int, *, seed: int) -> Iterator[bytes]:
    """Yield n copies of a GGUF file with one to three header fields set to something else."""
    rng = Random(seed)
    data, fields = path.read_bytes(), _fields(read_gguf(path))
    for _ in range(n):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            position, size_bytes = rng.choice(fields)
            layout = {1: "<B", 4: "<I", 8: "<Q"}[size_bytes]
            (value,) = struct.unpack_from(layout, damaged, position)
            values = {1: (0, 1, 255), 4: _EXTREME_U32, 8: _EXTREME_U64}[size_bytes]
            near = (value + 1, value - 1, value * 2, value // 2, value ^ (1 << rng.randrange(8)))
            chosen = rng.choice(near) if rng.random() < 0.5 else rng.choice(values)
            struct.pack_into(layout, damaged, position, chosen % 256**size_bytes)
        yield bytes(damaged)


def _fields(file: GgufFile) -> list[tuple[int, int]]:
    """Return (position, size) of each type, length, value, dimension and offset in the header."""
    fields = [(4, 4), (8, 8), (16, 8)]  # version, number of tensors, number of keys
    for key, type_name in file.types.items():
        start = file.header.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
        fields += [(start - 8 - len(key), 8), (start, 4)]
        if type_name == "arr":
            fields += [(start + 4, 4), (start + 8, 8), (start + 16, 8), (start + 28, 4)]
        elif type_name != "str":
            fields += [(start + 4, 1 if type_name == "bool" else 4)] * 3
        else:
            fields += [(start + 4, 8), (start + 12, 1)]
    for tensor in file.tensors:
        name = tensor.name.encode()
        start = file.header.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        n_dimensions = len(tensor.shape)
        fields += [(start, 4), (start + 4 + 8 * n_dimensions, 4), (start + 8 + 8 * n_dimensions, 8)]
        fields += [(start + 4 + 8 * index, 8) for index in range(n_dimensions)]
    return fields
