"""What the child processes do. Each task imports what it examines, and so may end its process."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from safesteer_edge.doctor.check import (
    BundleFacts,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
    TokenFacts,
)
from safesteer_edge.errors import BundleError

QUESTION = "Hello"

_N_DESCRIPTORS = 1024  # the lowest that is free is taken
_OFFLOADED = re.compile(r"offloaded (\d+/\d+) layers to GPU")

_Facts = LlamaFacts | DriverFacts | OnnxRuntimeFacts | BundleFacts | TokenFacts


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


def driver_facts() -> DriverFacts:
    """Start the NVIDIA driver, which may take a second, and list its GPUs."""

    return read_driver()


def onnxruntime_facts() -> OnnxRuntimeFacts:
    """Import ONNX Runtime with an empty home folder, and look for its build's CUDA libraries."""
    from safesteer_edge.probe.sessions import missing_cuda_libraries
    from safesteer_edge.processes.telemetry_off import import_onnxruntime

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


TASKS: Mapping[str, Callable[[], _Facts]] = {
    "llama": llama_facts,
    "driver": driver_facts,
    "onnxruntime": onnxruntime_facts,
    "bundle": bundle_facts,
    "token": token_facts,
}


# -- the NVIDIA driver, asked through its own library. Call it in a child: a driver may hang -------

_NAME_BYTES = 128
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE: the library without a GPU, as in CUDA's container images
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"  # PCI class of VGA, 3D and other display controllers
_PCI_DEVICES = Path("/sys/bus/pci/devices")


def read_driver() -> DriverFacts:
    """What the driver says of itself; takes up to a second where there is one.

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
