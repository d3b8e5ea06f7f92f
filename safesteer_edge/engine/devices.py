"""The GPUs that this build of llama.cpp can use, and how much of their memory is free."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from safesteer_edge.engine.native import lib, start_backend

_GPU, _INTEGRATED_GPU = 1, 2  # enum ggml_backend_dev_type (ggml-backend.h)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU. is_integrated: its memory is the machine's own."""

    name: str
    free_bytes: int
    total_bytes: int
    is_integrated: bool


def gpu_memory() -> tuple[GpuMemory, ...]:
    """Every GPU, asked now. Empty without one, or in a build for the CPU alone.

    Starts the backend, which takes a second where a driver has to be woken.
    """
    start_backend()
    if not lib.llama_supports_gpu_offload():
        return ()
    native = lib._lib
    # The bindings leave these out: size_t ggml_backend_dev_count(void); ggml_backend_dev_t
    # ggml_backend_dev_get(size_t); enum ggml_backend_dev_type ggml_backend_dev_type(dev);
    # const char * ggml_backend_dev_description(dev);
    # void ggml_backend_dev_memory(dev, size_t * free, size_t * total);
    count = _function(native, "ggml_backend_dev_count", ctypes.c_size_t)
    get = _function(native, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind_of = _function(native, "ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    describe = _function(native, "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    read = _function(native, "ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found: list[GpuMemory] = []
    for index in range(count()):
        device = get(index)
        kind = kind_of(device)
        if kind not in (_GPU, _INTEGRATED_GPU):
            continue
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        read(device, ctypes.byref(free), ctypes.byref(total))
        name = (describe(device) or b"GPU").decode("utf-8", "replace")
        found.append(GpuMemory(name, free.value, total.value, kind == _INTEGRATED_GPU))
    return tuple(found)


def _function(native: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(native, name)
    function.restype, function.argtypes = result, list(arguments)
    return function
