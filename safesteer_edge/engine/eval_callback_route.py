"""Hidden states by ggml's callback for graph nodes: for any graph, at a call for each node."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import NativeContext
from safesteer_edge.engine.native import lib
from safesteer_edge.errors import EngineError

if TYPE_CHECKING:
    from safesteer_edge.engine.hidden_states import RouteName

_FINAL_NORM_NODE = b"result_norm"


class EvalCallbackRoute:
    """`l_out-L` or `result_norm`, caught while the graph runs.

    Give `callback` to the context that is made.
    """

    name: RouteName = "eval_callback"

    def __init__(self, layers: tuple[int, ...], n_layer: int) -> None:
        self._layers = layers
        self._index_by_name = {
            _FINAL_NORM_NODE if layer == n_layer else f"l_out-{layer}".encode(): layer
            for layer in layers
        }
        self._caught: dict[int, NDArray[np.float32]] = {}
        self._failure: BaseException | None = None
        self._context: NativeContext | None = None
        self._enabled = False
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)

    def attach(self, context: NativeContext) -> None:
        self._context = context

    def before_answer(self) -> None:
        self._enabled = True

    def before_prefill(self) -> None:
        self._enabled = False

    def _on_node(self, tensor: int, ask: bool, _user_data: object) -> bool:
        """ask: may llama.cpp show this node? Else: here it is. False stops the graph."""
        if not self._enabled or self._failure is not None:
            return not ask
        try:
            layer = self._index_by_name.get(_ggml().ggml_get_name(tensor))
            if layer is None:
                return not ask
            if not ask:
                self._caught[layer] = _read_float_rows(tensor)
        except BaseException as error:
            # An exception in a ctypes callback would be printed and ignored: keep it for read().
            self._failure = error
            return False
        return True

    def read(self, n_rows: int) -> NDArray[np.float32]:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise EngineError(f"reading hidden states failed: {failure}") from failure
        context = self._context
        if context is None:
            raise EngineError("hidden states were asked for before the context was made")
        parts: list[NDArray[np.float32]] = []
        for layer in self._layers:
            rows = self._caught.get(layer)
            if rows is None or rows.shape != (n_rows, context.model.n_embd):
                shape = None if rows is None else rows.shape
                raise EngineError(f"block {layer} gave states of shape {shape}, not {n_rows} rows")
            parts.append(rows)
        self._caught.clear()
        return np.concatenate(parts, axis=1)


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
    ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
    ggml.ggml_get_name.restype = ctypes.c_char_p
    ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
    ggml.ggml_nbytes.restype = ctypes.c_size_t
    ggml.ggml_nrows.argtypes = [ctypes.c_void_p]
    ggml.ggml_nrows.restype = ctypes.c_int64
    ggml.ggml_backend_tensor_get.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    ggml.ggml_backend_tensor_get.restype = None
    return ggml


def _read_float_rows(tensor: int) -> NDArray[np.float32]:
    ggml = _ggml()
    flat = np.empty(ggml.ggml_nbytes(tensor) // 4, dtype=np.float32)
    ggml.ggml_backend_tensor_get(tensor, flat.ctypes.data, 0, flat.nbytes)
    return flat.reshape(int(ggml.ggml_nrows(tensor)), -1)
