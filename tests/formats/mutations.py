"""Seeded damage to good files: the kinds that disks, networks and attackers do."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from random import Random

from safesteer_edge.formats.gguf_file import GgufFile, read_gguf
from tests.formats.edited_gguf import (
    TypedValue,
    boolean,
    edit_gguf,
    i32_array,
    text,
    text_array,
    u32,
)
from tests.tiny_models import tiny_vocabulary

_EXTREME_U32 = (0, 1, 2, 3, 255, 256, 1025, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_EXTREME_U64 = (*_EXTREME_U32, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1)

BYTE_KINDS = ("llama", "bare llama", "plamo2", "rwkv")
_BYTE_TYPE = 6  # llama_token_type
_KINDS = ("gpt2", "gemma4", "hybriddna", "whitespace", "bert", "t5", "none", "test", *BYTE_KINDS)
_PRES = (
    "default",
    "smollm",
    "llama-bpe",
    "qwen2",
    "whitespace",
    "gemma4",
    "sarvam-moe",
    "tekken",
    "glm4",
)


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


def tokenizer_of_kind(kind: str, without: Collection[int] = ()) -> dict[str, TypedValue | None]:
    """The metadata of a tokenizer that has a token for each byte but some."""
    n_tokens = len(tiny_vocabulary().tokens)
    left = [byte for byte in range(256) if byte not in without]
    forms = {
        "llama": [b"<0x%02X>" % byte for byte in left],
        "plamo2": [b"<0x%02X>" % byte for byte in left],
        # llama.cpp's converter writes Python's own form of them.
        "rwkv": [repr(bytes((byte,)))[2:-1].encode() for byte in left],
        "bare llama": [bytes((byte,)) if byte else b"<0x00>" for byte in left],
    }
    tokens = [b"<unk>", b"<s>", b"</s>", *forms[kind]]
    tokens += [b"more %d" % n for n in range(n_tokens - len(tokens))]
    byte_type = 1 if kind in ("rwkv", "bare llama") else _BYTE_TYPE
    types = [3] * 3 + [byte_type] * len(left) + [1] * (n_tokens - 3 - len(left))
    return {
        "tokenizer.ggml.model": text(kind.split()[-1]),
        "tokenizer.ggml.tokens": text_array(tokens),
        "tokenizer.ggml.token_type": i32_array(types),
        "tokenizer.ggml.merges": None,
    }


def tokenizer_mutants(path: Path, n: int, *, seed: int) -> Iterator[bytes]:
    """Yield n copies of a GGUF file, each whole in form, with the tokenizer of another model."""
    rng = Random(seed)
    for _ in range(n):
        kind = rng.choice(_KINDS)
        lacking = rng.sample(range(256), rng.choice((0, 0, 0, 1, 3)))
        values = dict[str, TypedValue | None]()
        if kind in BYTE_KINDS and rng.random() < 0.8:
            values |= tokenizer_of_kind(kind, lacking)
        values["tokenizer.ggml.model"] = text(kind.split()[-1])
        if rng.random() < 0.8:
            values["tokenizer.ggml.pre"] = text(rng.choice(_PRES))
        for name in rng.sample(("bos", "eos", "unknown", "padding", "eot"), rng.randrange(3)):
            values[f"tokenizer.ggml.{name}_token_id"] = rng.choice((None, u32(rng.randrange(330))))
        if rng.random() < 0.3:
            values["tokenizer.ggml.add_bos_token"] = rng.choice((None, boolean(True)))
        if rng.random() < 0.1:
            values["general.name"] = text("Phi-3")  # llama.cpp goes by the name here
        edited = edit_gguf(path, values=values)
        yield edited.read_bytes()
        edited.unlink()
