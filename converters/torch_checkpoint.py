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
from collections.abc import Callable, Mapping, Sequence
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
        for operation, argument, _ in pickletools.genops(program):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _IGNORED:
                continue
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            else:
                raise _Refused(f"its pickle uses the operation {name}")
        raise _Refused("its pickle has no end")

    def pop_mark(self) -> list[Any]:
        """Take what was put on since the last mark."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def name_global(self, name: str) -> None:
        module, _, kind = name.partition(" ")
        known = name in (_DICTIONARY, _TENSOR, _PARAMETER)
        if not known and not (module == "torch" and kind in _STORAGES):
            raise _Refused(f"its pickle names {name.replace(' ', '.')!r}")
        self._stack.append(_Global(name))

    def make_tuple(self, n_items: int | None) -> None:
        if n_items is None:
            items = self.pop_mark()
        else:
            items = [self._stack.pop() for _ in range(n_items)][::-1]
        self._stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise _Refused("it appends to what is no list")
        self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise _Refused("it sets an entry of what is no dictionary")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self.set_items([key, value])

    def append_one(self, _: Any) -> None:
        item = self._stack.pop()
        self.append([item])

    def load_storage(self, _: Any) -> None:
        label, kind, key, _, _ = self._stack.pop()
        if label != "storage" or not isinstance(kind, _Global) or not isinstance(key, str):
            raise _Refused("it has something stored that is no tensor")
        self._stack.append(_Storage(kind.name.partition(" ")[2], key))

    def build(self, _: Any) -> None:
        """Drop an ordered dictionary's attributes: the versions of its modules."""
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise _Refused("it gives attributes to what is no dictionary")

    def reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, _Global) else ""
        if name == _DICTIONARY and not arguments:
            self._stack.append({})
        elif name == _TENSOR:
            self._stack.append(self._tensor(*arguments[:4]))
        elif name == _PARAMETER and isinstance(arguments[0], np.ndarray):
            self._stack.append(arguments[0])
        else:
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


_IGNORED: Final = ("PROTO", "FRAME")
_CONSTANTS: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS: Final = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
)
_ACTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name_global,
    "TUPLE": lambda machine, _: machine.make_tuple(None),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": _Machine.append_one,
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "BINPERSID": _Machine.load_storage,
    "BUILD": _Machine.build,
    "REDUCE": _Machine.reduce,
}
