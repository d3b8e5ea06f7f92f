"""Copies the rows of named nodes out of a running graph: a ggml_backend_sched_eval_callback.

It is asked about every node, so it is in C (_node_callback.c) where that was built; one in Python,
which does the same, takes its place elsewhere. `choose_callback` says which.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.native import lib
from safesteer_edge.errors import EngineError


class _Shared(ctypes.Structure):
    """What the callback in C reads and writes: `shared` in _node_callback.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("get_name", "n_rows", "n_bytes", "copy_out")),
        *((name, ctypes.c_void_p) for name in ("names", "n_caught", "rows")),
        *((name, ctypes.c_int64) for name in ("n_names", "max_rows", "row_bytes")),
        *((name, ctypes.c_int64) for name in ("is_enabled", "has_failed")),
    )


def c_callback() -> int | None:
    """The address of the callback in C; None where it was not built, or for another version."""
    try:
        module = importlib.import_module("safesteer_edge.engine._node_callback")
    except ImportError:
        return None
    return module.ADDRESS if ctypes.sizeof(_Shared) == module.SHARED_BYTES else None


class NodeCatcher:
    """The rows of the last graph's nodes of these names. One for each context.

    function, user_data: for the context's cb_eval. It must outlive that context.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        self._names = names
        self._shared = _Shared()
        self._failure: BaseException | None = None  # of the callback in Python
        self._rows = np.empty((len(names), 0, 0), dtype=np.float32)
        self._n_caught = np.zeros(len(names), dtype=np.int64)
        address = c_callback()
        if address is None:
            self.function = lib.ggml_backend_sched_eval_callback(self._on_node)
            self.user_data = None
            return
        ggml = _ggml()
        shared = self._shared
        shared.get_name = _address_of(ggml.ggml_get_name)
        shared.n_rows = _address_of(ggml.ggml_nrows)
        shared.n_bytes = _address_of(ggml.ggml_nbytes)
        shared.copy_out = _address_of(ggml.ggml_backend_tensor_get)
        self._c_names = (ctypes.c_char_p * len(names))(*names)
        shared.names = ctypes.addressof(self._c_names)
        shared.n_caught = self._n_caught.ctypes.data
        shared.n_names = len(names)
        self.function = lib.ggml_backend_sched_eval_callback(address)
        self.user_data = ctypes.addressof(shared)

    def make_room(self, max_rows: int, n_floats: int) -> None:
        """Before the first graph. A graph of more rows than these is let pass, and not caught."""
        self._rows = np.empty((len(self._names), max_rows, n_floats), dtype=np.float32)
        self._shared.rows = self._rows.ctypes.data
        self._shared.max_rows, self._shared.row_bytes = max_rows, n_floats * self._rows.itemsize

    def enable(self, is_enabled: bool) -> None:
        """Whether the next graphs' nodes are caught; at first they are not."""
        self._shared.is_enabled = is_enabled

    def take(self, n_rows: int) -> NDArray[np.float32]:
        """What was caught of the last graph, once: float32 (n_rows, n_names * n_floats), a copy.

        Raises EngineError where it has another shape, or where catching failed.
        """
        failure, has_failed = self._failure, self._shared.has_failed
        n_caught = self._n_caught.tolist()
        self._failure, self._shared.has_failed = None, False
        self._n_caught[:] = 0
        if failure is not None or has_failed:
            reason = failure or f"a node has not rows of {self._rows.shape[2]} floats"
            raise EngineError(f"reading hidden states failed: {reason}") from failure
        for name, n_found in zip(self._names, n_caught, strict=True):
            if n_found != n_rows:
                node = name.decode()
                raise EngineError(f"node {node!r} gave {n_found} rows of states, not {n_rows}")
        return np.concatenate(self._rows[:, :n_rows], axis=1)

    def _on_node(self, tensor: int, ask: bool, _user_data: object) -> bool:
        """As `on_node` in _node_callback.c."""
        if not self._shared.is_enabled or self._failure is not None:
            return not ask
        try:
            ggml = _ggml()
            name = ggml.ggml_get_name(tensor)
            if name not in self._names:
                return not ask
            index = self._names.index(name)
            _, max_rows, n_floats = self._rows.shape
            n_rows = ggml.ggml_nrows(tensor)
            if ask:
                self._n_caught[index] = 0
                return n_rows <= max_rows
            size = n_rows * n_floats * self._rows.itemsize
            if n_rows > max_rows or ggml.ggml_nbytes(tensor) != size:
                raise EngineError(f"a node has not rows of {n_floats} floats")
            ggml.ggml_backend_tensor_get(tensor, self._rows[index].ctypes.data, 0, size)
            self._n_caught[index] = n_rows
        except BaseException as error:
            # An exception in a ctypes callback would be printed and ignored: keep it for take().
            self._failure = error
            return False
        return True


def _address_of(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


@cache
def _ggml() -> Any:
    """ggml's base library, for the few calls on tensors that llama-cpp-python does not bind."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        if (folder / name).is_file():
            ggml = ctypes.CDLL(str(folder / name))
            break
    else:
        raise EngineError(f"no ggml-base library in {str(folder)!r}; reinstall llama-cpp-python")
    tensor, size = ctypes.c_void_p, ctypes.c_size_t
    for call, result, arguments in (
        (ggml.ggml_get_name, ctypes.c_char_p, [tensor]),
        (ggml.ggml_nbytes, size, [tensor]),
        (ggml.ggml_nrows, ctypes.c_int64, [tensor]),
        (ggml.ggml_backend_tensor_get, None, [tensor, ctypes.c_void_p, size, size]),
    ):
        call.restype, call.argtypes = result, arguments
    return ggml
