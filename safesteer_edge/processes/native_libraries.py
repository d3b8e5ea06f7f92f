"""What native libraries of this process get: cores to compute with, a short spin, no telemetry."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any, Final


def n_usable_cores() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


# -- how long the threads that decode wait actively for each other ---------------------------------
# GNU's OpenMP lets them spin for a millisecond and more at every operation of the graph. Where
# other programs want the cores too, a thread then spins while the one that it waits for has no
# core: on two busy cores the default model wrote 1 to 2 tokens/s, and 3 to 7 with the short spin
# that GNU's OpenMP has itself where it starts more threads than there are cores. On idle cores
# both gave the same, 105 and 106 tokens/s. Not spinning at all (`OMP_WAIT_POLICY=PASSIVE`) gave 7
# to 16, but halved the idle speed.

_SPIN_COUNT: Final = "1000"
_CHOSEN_BY_USERS: Final = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@contextlib.contextmanager
def spinning_briefly(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Choose a short spin for an OpenMP that is loaded meanwhile, unless the person chose.

    Afterwards the environment is as before: what a program that uses this package starts is its own
    matter.
    """
    if any(name in environment for name in _CHOSEN_BY_USERS):
        yield
        return
    environment["GOMP_SPINCOUNT"] = _SPIN_COUNT
    try:
        yield
    finally:
        del environment["GOMP_SPINCOUNT"]


# -- the one way to onnxruntime: imported with its telemetry off -----------------------------------
# Since 1.29 its builds for Linux and macOS write a device id and a queue of events below the user's
# cache folder as soon as they are imported, and look up a host of Microsoft's some seconds later.
# Its own `disable_telemetry_events` comes too late for either; a variable in the environment does
# not (github.com/microsoft/onnxruntime, docs/Privacy.md).

_SWITCH: Final = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module, which takes 0.1 s and has no type stubs. Call it before what imports it itself.

    The variable stays set, for child processes. Warns where onnxruntime was imported before
    without it: then it only makes fewer events.
    """
    if "onnxruntime" in sys.modules and os.environ.get(_SWITCH) != "1":
        warnings.warn(
            f"onnxruntime was imported before {_SWITCH}=1 was set, so that it may have written to "
            "the cache folder and may look up a host of Microsoft's; set it before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    os.environ[_SWITCH] = "1"
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    onnxruntime.disable_telemetry_events()  # Windows' builds do not know the variable
    return onnxruntime
