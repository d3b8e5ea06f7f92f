"""The llama.cpp library itself: started once, its logs in `logging`, its build and CPU facts.

llama.cpp writes its log to stderr unless told otherwise; a terminal app draws there, so all of
it goes to the logger `safesteer_edge.native`, and the first error line is kept for messages.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import llama_cpp
from llama_cpp import llama_cpp as _llama
from llama_cpp import mtmd_cpp as _mtmd

from safesteer_edge.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

# The bindings' annotations name Python types where ctypes passes pointers and structures, so that
# correct calls fail a type checker: this package reaches them through these two untyped names.
lib: Any = _llama
mtmd_cpp: Any = _mtmd

logger = logging.getLogger("safesteer_edge.native")

# enum ggml_log_level (ggml.h): 5 continues the line before it.
_LOG_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5

_first_error = ""
_last_level = logging.INFO


@lib.llama_log_callback
def _forward_log(level: int, text: bytes, _user_data: object) -> None:
    """Pass one native log line to `logging`; must never raise (ctypes would print and go on)."""
    global _first_error, _last_level
    if level != _CONTINUE:
        _last_level = _LOG_LEVELS.get(level, logging.DEBUG)
    line = text.decode("utf-8", "replace").rstrip()
    if not line:
        return
    if _last_level >= logging.ERROR and not _first_error:
        _first_error = line.splitlines()[0]
    logger.log(_last_level, "%s", line)


@cache
def start_backend() -> None:
    """Start llama.cpp and route its logs; once a process, and it lives until that ends.

    Two threads that come first at once both do it, which llama.cpp takes.
    """
    # Without a handler, Python would print native warnings on stderr.
    logger.addHandler(logging.NullHandler())
    no_user_data = ctypes.c_void_p(0)
    lib.llama_log_set(_forward_log, no_user_data)
    mtmd_cpp.mtmd_helper_log_set(_forward_log, no_user_data)  # sets mtmd's as well
    lib.llama_backend_init()


def native_error_cause(otherwise: str = "no reason given") -> str:
    """The first error line since `forget_native_errors`, for an error message.

    Later lines only pass it on: the last one is "failed to load model", whatever the reason.
    """
    return _first_error or otherwise


def forget_native_errors() -> None:
    """Drop the kept error line, so that the next message cannot quote an older failure."""
    global _first_error
    _first_error = ""


@dataclass(frozen=True, slots=True)
class NativeFacts:
    """What this build of llama.cpp is and sees."""

    binding_version: str
    system_info: str
    has_amx: bool
    supports_gpu_offload: bool


def native_facts() -> NativeFacts:
    """Read the build and CPU facts. Starts the backend."""
    start_backend()
    system_info = lib.llama_print_system_info().decode("utf-8", "replace")
    return NativeFacts(
        binding_version=llama_cpp.__version__,
        system_info=system_info.strip(),
        has_amx="AMX_INT8 = 1" in system_info,
        supports_gpu_offload=bool(lib.llama_supports_gpu_offload()),
    )


def must_avoid_extra_buffer_types() -> bool:
    """True where ggml's extra buffer types must stay off.

    ggml's AMX path dies with SIGSEGV at the first prompt on CPUs with AMX
    (github.com/ggml-org/llama.cpp/issues/20824); without extra buffer types it is not taken.
    """
    return native_facts().has_amx


class NativeObject:
    """Owns one native handle, freed by `close()` or with the object. Or use it in a `with`."""

    _what = "the object"  # for messages

    def _own(self, handle: Any, free: Callable[[Any], None]) -> None:
        """Take a handle over: in the statement after the one that made it."""
        self._handle: Any = handle
        self._finalizer = weakref.finalize(self, free, handle)

    @property
    def handle(self) -> Any:
        """The native handle, for this package alone. Raises EngineError after `close()`."""
        if self._handle is None:
            raise EngineError(f"{self._what} is closed; open a new session")
        return self._handle

    def close(self) -> None:
        """Free it. Idempotent."""
        self._handle = None
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- the GPUs that this build of llama.cpp can use, and how much of their memory is free -----------

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
    count = c_function(native, "ggml_backend_dev_count", ctypes.c_size_t)
    get = c_function(native, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind_of = c_function(native, "ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    describe = c_function(native, "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    read = c_function(native, "ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
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


def c_function(native: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of a loaded library with a prototype of its own: the bindings' stays as it is."""
    function = native[name]
    function.restype, function.argtypes = result, list(arguments)
    return function
