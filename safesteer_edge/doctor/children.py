"""Examinations that native code may not survive, each in a process of its own.

An illegal instruction (a wheel built for another CPU), a failed GGML_ASSERT or a driver that
hangs then ends the child, and is a finding like any other. Each task imports what it examines.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import stat
import sys
import tempfile
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeVar

from safesteer_edge.doctor.check import Check, fail, failure_of_message
from safesteer_edge.errors import BundleError, SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import from_json, to_json
from safesteer_edge.processes.child import Child

Cause = Literal["illegal instruction", "crash", "time limit", "missing module", "error"]
Facts = TypeVar("Facts")

QUESTION: Final = "Hello"
_MAX_QUOTED: Final = 200
_N_DESCRIPTORS: Final = 1024  # the lowest that is free is taken
_OFFLOADED: Final = re.compile(r"offloaded (\d+/\d+) layers to GPU")
_NAME_BYTES: Final = 128
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE: the library without a GPU, as in CUDA's images
_NVIDIA_VENDOR: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"  # PCI class of VGA, 3D and other display controllers
_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")

# -- asking ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChildFailure:
    """Why a child has nothing to report. is_ours: message is that of one of our own errors."""

    cause: Cause
    message: str
    is_ours: bool = False

    def check(self, name: str, remedy: str) -> Check:
        """The failed check that this makes. remedy: where the message brings none along."""
        if self.is_ours:
            return failure_of_message(name, self.message)
        return fail(name, self.message, remedy)


def ask_child(task: Callable[[], Facts], *, limit_s: float) -> Facts | ChildFailure:
    """What one of the tasks below finds out in a new process, or how that failed.

    Starting one takes some 50 ms.
    """
    try:
        child = Child(
            f"{__name__}:serve",
            {"task": task.__name__},
            environment=os.environ,
            log_filter=strip_control_characters,
        )
    except OSError as error:
        return ChildFailure("error", f"cannot start {sys.executable!r} ({error.strerror})")
    reply: dict[str, Any] = {}
    try:
        with child.within(limit_s):
            reply = json.loads(child.stdout.readline())
    except TimeoutError:
        return ChildFailure("time limit", f"no answer within {limit_s:g} s")
    except EOFError:
        pass  # how it ended says why
    finally:
        death = child.death(limit_s)
    if death.how != "exit code 0":
        cause = "illegal instruction" if death.cause == "illegal instruction" else "crash"
        said = f": {child.log[-1].strip()[:_MAX_QUOTED]}" if child.log else ""
        return ChildFailure(cause, f"the process ended with {death.how}{said}")
    if "failure" in reply:
        return ChildFailure(**reply["failure"])
    return from_json(typing.get_type_hints(task)["return"], reply["facts"])


def serve(options: dict[str, Any], _: IO[bytes], replies_fd: int) -> None:
    """What such a process runs: see `processes.child_main`."""
    try:
        reply: dict[str, object] = {"facts": to_json(globals()[options["task"]]())}
    except Exception as error:  # whatever it is, the parent reports it
        is_ours = isinstance(error, SafeSteerError)
        message = " ".join(str(error).split())
        failure = {
            "cause": "missing module" if isinstance(error, ImportError) else "error",
            "message": message if is_ours else f"{type(error).__name__}: {message}",
            "is_ours": is_ours,
        }
        reply = {"failure": failure}
    with os.fdopen(replies_fd, "w") as replies:
        print(json.dumps(reply), file=replies)


# -- what they report; plain values that go through JSON -------------------------------------------


@dataclass(frozen=True, slots=True)
class LlamaFacts:
    """What this build of llama.cpp is and sees, and whether our callback for it was built."""

    binding_version: str
    system_info: str
    has_amx: bool
    supports_gpu_offload: bool
    avoids_extra_buffer_types: bool
    has_c_callback: bool

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """Instruction sets and options that the CPU backend was built with."""
        _, _, features = self.system_info.partition("CPU : ")
        own, _, _ = features.partition(" : ")  # the next backend's part begins
        listed = re.findall(r"(\S+) = (\S+)", own)
        return tuple(
            name if value == "1" else f"{name}={value}" for name, value in listed if value != "0"
        )

    @property
    def is_built_with_cuda(self) -> bool:
        """True if the CUDA backend is in the build, whether or not it sees a device."""
        return "CUDA : " in self.system_info


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The NVIDIA driver. problem: why it does not start, None if it does or is not there.

    is_installed: its library is there. cuda_version: the newest CUDA that it serves, as '13.0'.
    """

    is_installed: bool
    problem: str | None
    cuda_version: str
    gpu_names: tuple[str, ...]

    @property
    def has_gpu(self) -> bool:
        """True if it works and sees a GPU."""
        return bool(self.gpu_names)


@dataclass(frozen=True, slots=True)
class OnnxRuntimeFacts:
    """providers: those listed, which says nothing about whether they work.

    missing_for_cuda: what stands between this machine and a CUDA session.
    files_written: below the home folder, by importing it. n_sockets: open afterwards; None where
    the system does not say.
    """

    version: str
    providers: tuple[str, ...]
    missing_for_cuda: tuple[str, ...]
    files_written: tuple[str, ...]
    n_sockets: int | None


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """A guard bundle that loaded, its probe's self-test passed. probe_provider: really used."""

    name: str
    match: str
    probe_provider: str
    probe_call_s: float
    n_probe_canaries: int
    n_engine_canaries: int
    warnings: tuple[str, ...]
    is_calibrated: bool
    has_vector: bool
    is_quick: bool = False


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """One guarded token. refusal: the guard's sentence on why it refused, None if it did not.

    offloaded: layers on the GPU as llama.cpp says, such as '31/31'; None for a CPU build.
    peak_bytes: the most memory that the process had; None where the system does not say.
    """

    load_s: float
    answer_s: float
    route: str | None
    probe_provider: str | None
    n_engine_canaries: int
    offloaded: str | None
    token: str
    refusal: str | None
    guard_failed: bool
    peak_bytes: int | None


# -- the tasks -------------------------------------------------------------------------------------


def llama_facts() -> LlamaFacts:
    """Start llama.cpp, and say what it is built for."""
    from safesteer_edge.engine.native import must_avoid_extra_buffer_types, native_facts
    from safesteer_edge.engine.node_catcher import c_callback

    facts = native_facts()
    return LlamaFacts(
        binding_version=facts.binding_version,
        system_info=facts.system_info,
        has_amx=facts.has_amx,
        supports_gpu_offload=facts.supports_gpu_offload,
        avoids_extra_buffer_types=must_avoid_extra_buffer_types(),
        has_c_callback=c_callback() is not None,
    )


def onnxruntime_facts() -> OnnxRuntimeFacts:
    """Import ONNX Runtime with an empty home folder, and look for its build's CUDA libraries."""
    from safesteer_edge.probe.sessions import missing_cuda_libraries
    from safesteer_edge.processes.native_libraries import import_onnxruntime

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ.update(HOME=home, XDG_CACHE_HOME=str(Path(home, ".cache")), LOCALAPPDATA=home)
        onnxruntime = import_onnxruntime()
        traces = sorted(
            path.relative_to(home).as_posix() for path in Path(home).rglob("*") if path.is_file()
        )
    return OnnxRuntimeFacts(
        version=onnxruntime.__version__,
        providers=tuple(onnxruntime.get_available_providers()),
        missing_for_cuda=missing_cuda_libraries(
            str(getattr(onnxruntime, "cuda_version", "")),
            Path(str(onnxruntime.__file__)).parent.parent,
        ),
        files_written=tuple(traces),
        n_sockets=_n_sockets(),
    )


def bundle_facts() -> BundleFacts:
    """Load the default model's guard bundle, which runs its probe's self-test."""
    from safesteer_edge.bundle.bundle import load_bundle
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.library.catalogue import default_model, installed_path

    entry = default_model()
    if entry.bundle is None:
        raise BundleError(f"model {entry.name!r} has no guard bundle; reinstall safesteer-edge")
    with load_bundle(entry.bundle, check_language_model(installed_path(entry))) as bundle:
        return BundleFacts(
            name=bundle.config.name,
            match=bundle.match,
            probe_provider=bundle.probe.provider,
            probe_call_s=bundle.probe.seconds_per_call,
            n_probe_canaries=len(bundle.config.canaries.probe),
            n_engine_canaries=len(bundle.config.canaries.engine),
            warnings=bundle.warnings,
            is_calibrated=bundle.is_calibrated,
            has_vector=bundle.control_vector is not None,
            is_quick=bundle.is_quick,
        )


def token_facts() -> TokenFacts:
    """Decode one guarded token with the default model; opening it runs the engine's self-test."""
    from safesteer_edge.engine.hidden_states import describe_route
    from safesteer_edge.guard.events import TurnEnded
    from safesteer_edge.guard.policy import SamplingSettings
    from safesteer_edge.session.session import open_session
    from safesteer_edge.session.settings import SessionSettings

    native_log = _NativeLog()
    settings = SessionSettings(sampling=SamplingSettings(temperature=0), max_tokens=1)
    with open_session(settings) as session:
        started_s = time.perf_counter()
        *_, ended = session.ask(QUESTION)
        answer_s = time.perf_counter() - started_s
        if not isinstance(ended, TurnEnded):
            raise RuntimeError("the session ended a turn without saying so")
        info, refusal = session.info, ended.refusal
        return TokenFacts(
            load_s=info.load_s,
            answer_s=answer_s,
            route=describe_route(info.hidden_state_route) if info.hidden_state_route else None,
            probe_provider=info.probe_provider,
            n_engine_canaries=_n_engine_canaries(),
            offloaded=native_log.offloaded,
            token="" if refusal else ended.text,
            refusal=refusal.detail if refusal else None,
            guard_failed=refusal is not None and refusal.reason == "guard_failed",
            peak_bytes=_peak_bytes(),
        )


def driver_facts() -> DriverFacts:
    """What the NVIDIA driver says of itself; takes a second, or hangs, where there is one.

    Source: cuda.h; every function returns a CUresult, 0 is success.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return DriverFacts(False, None, "", ())
    # CUresult cuDriverGetVersion(int *version); 13000 is CUDA 13.0, and needs no cuInit.
    version = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    # CUresult cuInit(unsigned int flags)
    status = driver.cuInit(ctypes.c_uint(0))
    if status == _NO_DEVICE:
        return DriverFacts(True, None, cuda_version, ())
    if status != 0:
        return DriverFacts(True, f"cuInit returns CUDA error {status}", cuda_version, ())
    return DriverFacts(True, None, cuda_version, _gpu_names(driver))


def has_nvidia_device(pci_devices: Path = _PCI_DEVICES) -> bool:
    """True if Linux lists an NVIDIA display controller on the PCI bus, with or without driver."""
    for device in pci_devices.glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA_VENDOR and kind.startswith(_DISPLAY_CLASS):
            return True
    return False


class _NativeLog(logging.Handler):
    """Finds the one line in llama.cpp's log that proves what runs on the GPU."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.offloaded: str | None = None
        logger = logging.getLogger("safesteer_edge.native")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        match = _OFFLOADED.search(record.getMessage())
        if match:
            self.offloaded = match[1]


def _n_engine_canaries() -> int:
    from safesteer_edge.bundle.bundle import read_config
    from safesteer_edge.library.catalogue import default_model

    folder = default_model().bundle
    return len(read_config(folder).canaries.engine) if folder else 0


def _n_sockets() -> int | None:
    """How many this process has open; the pipes to its parent are none."""
    if sys.platform == "win32":  # there they are no file descriptors
        return None
    n_sockets = 0
    for descriptor in range(_N_DESCRIPTORS):
        with contextlib.suppress(OSError):
            n_sockets += stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    return n_sockets


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): KiB on Linux


def _gpu_names(driver: ctypes.CDLL) -> tuple[str, ...]:
    # CUresult cuDeviceGetCount(int *count)
    n_devices = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(n_devices)) != 0:
        return ()
    names: list[str] = []
    for ordinal in range(n_devices.value):
        # CUresult cuDeviceGet(CUdevice *device, int ordinal); CUdevice is an int
        device = ctypes.c_int(0)
        driver.cuDeviceGet(ctypes.byref(device), ctypes.c_int(ordinal))
        # CUresult cuDeviceGetName(char *name, int len, CUdevice dev)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), device)
        names.append(name.value.decode("utf-8", "replace") or f"GPU {ordinal}")
    return tuple(names)
