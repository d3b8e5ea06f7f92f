"""The machine that something is measured on, its processes, and the memory that they take."""

from __future__ import annotations

import multiprocessing
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from safesteer_edge.engine.native import native_facts
from safesteer_edge.errors import EngineError
from safesteer_edge.processes.native_libraries import n_usable_cores

_Arguments = ParamSpec("_Arguments")
_Measured = TypeVar("_Measured")

_PACKAGES: Final = (
    "safesteer-edge",
    "llama-cpp-python",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
)
_CPUINFO: Final = Path("/proc/cpuinfo")
_OWN_STATUS: Final = Path("/proc/self/status")
_OWN_CLEAR_REFS: Final = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """versions: of installed packages, by name. llama_system_info: what llama.cpp's build uses."""

    cpu: str
    n_cores: int
    operating_system: str
    python: str
    versions: Mapping[str, str]
    llama_system_info: str


def read_machine() -> MachineFacts:
    """What this machine is. n_cores: those that this process may use."""
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return MachineFacts(
        cpu=cpu_name(),
        n_cores=n_usable_cores(),
        operating_system=platform.platform(),
        python=platform.python_version(),
        versions=versions,
        llama_system_info=native_facts().system_info,
    )


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name as people know it; else what Python knows of it."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        if sys.platform == "darwin":
            return _sysctl("machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def peak_memory_bytes(status: Path = _OWN_STATUS) -> int | None:
    """The most resident memory that this process had, mapped model files included.

    None where the system does not tell. Linux's ru_maxrss is no use: a child begins with its
    parent's (getrusage(2)); VmHWM begins anew.
    """
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        if sys.platform == "darwin":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS alone
    return None


def forget_peak_memory(clear_refs: Path = _OWN_CLEAR_REFS) -> bool:
    """Let `peak_memory_bytes` begin anew. False where the system cannot (proc(5), clear_refs)."""
    try:
        clear_refs.write_text("5")
    except OSError:
        return False
    return True


def measure_in_child(
    measure: Callable[_Arguments, _Measured],
    *arguments: _Arguments.args,
    **options: _Arguments.kwargs,
) -> _Measured:
    """Call a module-level function in a new process, and return what it returns.

    Errors that it raises are raised here; EngineError if the process dies.
    """
    context = multiprocessing.get_context("spawn")  # llama.cpp and its threads do not survive fork
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, *arguments, **options).result()
        except BrokenProcessPool as error:
            raise EngineError(
                "the process that measures died; run 'safesteer-edge doctor', and look whether "
                "the machine has enough memory for this model"
            ) from error


def _sysctl(key: str) -> str:
    try:
        found = subprocess.run(
            ["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()
    return found.stdout.strip()
