"""PyTorch checkpoints (.pt, .pth) of plain tensors, read without PyTorch and without unpickling.

A checkpoint is a zip of raw storages and one pickle that says which tensors they make. A pickle is
a program; here it is read by a machine that knows the two dozen operations which state
dictionaries need and has nothing that could be called: what the file names are only labels,
compared with a short list. So no file can run code, in Python or in an unpickler's native one
(CVE-2025-32434 and CVE-2026-24747 were in torch.load(weights_only=True)), and PyTorch need not
be installed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from safesteer_edge.converters.tensor_files import (
    MAX_BYTES,
    Array,
    ZipMember,
    bfloat16_to_float32,
    read_zip_members,
    unreadable,
)

_MAX_PICKLE_BYTES = 4 << 20
WEIGHTS_REMEDY: Final = (
    "save its weights with safetensors.torch.save_file(module.state_dict(), 'probe.safetensors') "
    "and convert that"
)
_STORAGES: Final = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_DICTIONARY = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"


@dataclass(frozen=True, slots=True)
class _Global:
    """The name of something in Python; never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """A row of numbers. kind: a key of _STORAGES; key: the member of the zip that holds it."""

    kind: str
    key: str


class _Refused(ValueError):
    """The pickle does something that no state dictionary needs."""


def read_torch_checkpoint(
    path: Path, *, wrappers: Sequence[str], remedy: str, may_be_bare: bool = False
) -> Mapping[str, Array]:
    """Return a dictionary's tensors by name, in its order; bfloat16 becomes float32.

    A dictionary that has it under one of the names in wrappers will do. may_be_bare: so will a
    single tensor, whose name is ''.
    Raises InputError for anything else: whole modules, classes, files of PyTorch before 1.6.
    """
    members = read_zip_members(path)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise unreadable(path, "it is not a PyTorch checkpoint", remedy)
    folder = pickles[0].removesuffix("data.pkl")
    if members.get(f"{folder}byteorder", ZipMember(b"little", True)).data != b"little":
        raise unreadable(path, "its numbers are big-endian", remedy)
    program = members[pickles[0]].data
    try:
        if len(program) > _MAX_PICKLE_BYTES:
            raise _Refused(f"its pickle has {len(program)} bytes")
        content = _Machine(members, folder).run(program)
        if may_be_bare and isinstance(content, np.ndarray):
            content = {"": content}
        return _tensors(content, wrappers)
    except _Refused as error:
        raise unreadable(path, f"it is no plain state dictionary ({error})", remedy) from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, MemoryError) as error:
        # whatever a damaged pickle makes of the stack
        raise unreadable(path, f"its pickle is damaged ({error})", remedy) from error


def _tensors(content: Any, wrappers: Sequence[str]) -> dict[str, Array]:
    if not isinstance(content, dict) or not content:
        raise _Refused(f"it holds a {type(content).__name__}")
    for key in wrappers:
        if isinstance(content.get(key), dict):
            return _tensors(content[key], wrappers)
    for name, tensor in content.items():
        if not isinstance(name, str | int) or not isinstance(tensor, np.ndarray):
            raise _Refused(f"its entry {name!r} is no tensor")
    return {str(name): tensor for name, tensor in content.items()}


class _Machine:
    """Runs a pickle's operations on a stack of plain values."""

    def __init__(self, members: Mapping[str, ZipMember], folder: str) -> None:
        self._members = members
        self._folder = folder
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._bytes_left = MAX_BYTES  # many tensors can lie in one storage

    def run(self, program: bytes) -> Any:
        """Return what it makes. Raises _Refused, and whatever a damaged one provokes."""
        for operation, argument, _ in pickletools.genops(program):
            if operation.name == "STOP":
                return self._stack.pop()
            self._do(operation.name, argument)
        raise _Refused("its pickle has no end")

    def _do(self, operation: str, argument: Any) -> None:
        stack = self._stack
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "MARK":
                self._marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_known_global(argument))
            case "TUPLE":
                stack.append(tuple(self._taken(self._marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._taken(-int(operation[-1]))))
            case "APPEND" | "APPENDS":
                items = self._taken(-1 if operation == "APPEND" else self._marks.pop())
                self._last(list, "it appends to what is no list").extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._taken(-2 if operation == "SETITEM" else self._marks.pop())
                pairs = zip(items[::2], items[1::2], strict=True)
                self._last(dict, "it sets an entry of what is no dictionary").update(pairs)
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "BUILD":  # an ordered dictionary's attributes: the versions of its modules
                stack.pop()
                self._last(dict, "it gives attributes to what is no dictionary")
            case "REDUCE":
                function, arguments = self._taken(-2)
                stack.append(self._called(function, arguments))
            case _:
                raise _Refused(f"its pickle uses the operation {operation}")

    def _taken(self, start: int) -> list[Any]:
        """Take what lies on the stack from there on."""
        if -start > len(self._stack):
            raise _Refused("its pickle takes what is not there")
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _last(self, kind: type[Any], problem: str) -> Any:
        if type(self._stack[-1]) is not kind:
            raise _Refused(problem)
        return self._stack[-1]

    def _called(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else ""
        if name == _DICTIONARY and not arguments:
            return {}
        if name == _TENSOR:
            return self._tensor(*arguments[:4])
        if name == _PARAMETER and isinstance(arguments[0], np.ndarray):
            return arguments[0]
        raise _Refused(f"its pickle calls {name!r}")

    def _tensor(self, storage: Any, offset: int, shape: Any, strides: Any) -> Array:
        if not isinstance(storage, _Storage):
            raise _Refused("a tensor has no storage")
        member = self._members[f"{self._folder}data/{storage.key}"]
        if not member.is_stored:
            raise _Refused("its numbers are compressed, which PyTorch never does")
        row = np.frombuffer(member.data, _STORAGES[storage.kind])
        sizes = [offset, *shape, *strides]
        if not all(type(size) is int and 0 <= size <= 1 << 40 for size in sizes):
            raise _Refused(f"a tensor has the shape {shape} and strides {strides}")
        n_values = int(np.prod(shape, dtype=object))
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if n_values > row.size or (n_values and last >= row.size):
            raise _Refused(f"a tensor of shape {shape} is larger than its storage")
        self._bytes_left -= n_values * row.itemsize
        if self._bytes_left < 0:
            raise _Refused(f"its tensors have more than {MAX_BYTES} bytes")
        view = np.lib.stride_tricks.as_strided(
            row[offset:], shape, [step * row.itemsize for step in strides], writeable=False
        )
        array = np.array(view)
        return bfloat16_to_float32(array) if storage.kind == "BFloat16Storage" else array


def _known_global(name: str) -> _Global:
    module, _, kind = name.partition(" ")
    known = name in (_DICTIONARY, _TENSOR, _PARAMETER)
    if not known and not (module == "torch" and kind in _STORAGES):
        raise _Refused(f"its pickle names {name.replace(' ', '.')!r}")
    return _Global(name)


def _storage(label: Any, kind: Any, key: Any, _location: Any, _n_values: Any) -> _Storage:
    if label != "storage" or not isinstance(kind, _Global) or not isinstance(key, str):
        raise _Refused("it has something stored that is no tensor")
    return _Storage(kind.name.partition(" ")[2], key)
