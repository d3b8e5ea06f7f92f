"""llama.cpp's own loader of control vectors: the C++ function behind its --control-vector.

It is exported under its C++ name by libllama-common, which llama-cpp-python installs; the
structures here are those of common.h with libstdc++ on 64-bit Linux, and nowhere else.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

_SYMBOL = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class _String(ctypes.Structure):
    """std::string that does not fit into itself: a pointer, a length, a capacity."""

    _fields_ = (
        ("text", ctypes.c_char_p),
        ("length", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
        ("unused", ctypes.c_size_t),
    )


class _LoadInfo(ctypes.Structure):
    """common_control_vector_load_info."""

    _fields_ = (("strength", ctypes.c_float), ("file", _String))


class _Vector(ctypes.Structure):
    """std::vector: begin, end, end of storage."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("begin", "end", "end_of_storage"))


class _Loaded(ctypes.Structure):
    """common_control_vector_data."""

    _fields_ = (("n_embd", ctypes.c_int), ("data", _Vector))


def load_in_llama_cpp(files: Sequence[tuple[Path, float]]) -> NDArray[np.float32] | None:
    """Return what llama.cpp reads of (file, strength): row N − 1 is direction.N, all added up.

    None where it refuses a file. Skips the test where the loader cannot be called.
    """
    infos = (_LoadInfo * len(files))()
    for info, (path, strength) in zip(infos, files, strict=True):
        text = str(path).encode()
        info.strength, info.file = strength, _String(text, len(text), len(text), 0)
    start = ctypes.addressof(infos)
    end = start + ctypes.sizeof(infos)
    loaded = _Loaded()
    # A structure with a destructor is returned through a hidden first argument.
    _loader()(ctypes.byref(loaded), ctypes.byref(_Vector(start, end, end)))
    if loaded.n_embd <= 0:
        return None
    n_values = (loaded.data.end - loaded.data.begin) // 4
    values = ctypes.cast(loaded.data.begin, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(values, (n_values,)).copy().reshape(-1, loaded.n_embd)


def _loader() -> Any:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("llama.cpp's C++ loader is called on 64-bit Linux alone")
    library = Path(str(distribution("llama-cpp-python").locate_file("lib/libllama-common.so")))
    assert llama_cpp.llama_print_system_info()  # it is loaded, and so is what the library needs
    try:
        function = getattr(ctypes.CDLL(str(library)), _SYMBOL)
    except (OSError, AttributeError) as error:
        pytest.skip(f"llama.cpp's loader is not there: {error}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    return function
