"""llama-ext.h's calls for the inputs of layers, which llama.cpp exports under C++ names alone."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from safesteer_edge.engine.native import lib
from safesteer_edge.errors import EngineError

_SYMBOLS_SET = (
    "llama_set_embeddings_layer_inp",
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "?llama_set_embeddings_layer_inp@@YAXPEAUllama_context@@I_N@Z",
)
_SYMBOLS_GET = (
    "llama_get_embeddings_layer_inp",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
    "?llama_get_embeddings_layer_inp@@YAPEAMPEAUllama_context@@I@Z",
)


@cache
def layer_input_calls() -> tuple[Any, Any] | None:
    """The set and get calls of llama-ext.h, or None where the library does not export them."""
    library = lib._lib  # pyright: ignore[reportPrivateUsage]  # the loaded libllama
    set_call, get_call = _find(library, _SYMBOLS_SET), _find(library, _SYMBOLS_GET)
    if set_call is None or get_call is None:
        return None
    set_call.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool]
    set_call.restype = None
    get_call.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    get_call.restype = ctypes.c_void_p
    return set_call, get_call


def _find(library: ctypes.CDLL, names: Sequence[str]) -> Any:
    for name in names:
        try:
            return getattr(library, name)
        except AttributeError:
            continue
    return None


def require_layer_input_calls() -> tuple[Any, Any]:
    """As `layer_input_calls`; raises EngineError where there are none."""
    calls = layer_input_calls()
    if calls is None:
        raise EngineError("this llama.cpp does not export layer inputs")
    return calls
