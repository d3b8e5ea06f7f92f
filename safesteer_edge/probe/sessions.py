"""Sessions that run a probe's graph.

A linear probe takes a few microseconds on one CPU thread, less than one trip to a GPU. So the
CPU is always tried, a GPU only where its libraries really load, and the faster of the two is
kept. Neither onnxruntime's log nor its own `print`s are let through: the screen belongs to the
user interface.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import threading
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError, ProbeFileError
from safesteer_edge.processes.native_libraries import import_onnxruntime

# -- whether the CUDA libraries that onnxruntime-gpu needs can be loaded on this machine -----------
# Asking onnxruntime itself is no way to find out: `get_available_providers()` lists CUDA on
# machines that have none, and asking for a CUDA session there prints alarming lines on stderr
# before it falls back to the CPU. So the libraries are loaded first, by name, with the loader
# that onnxruntime uses. A library that an `nvidia-*` wheel brought is loaded by its full path,
# after which the system's loader gives the same copy to onnxruntime.

# cuDNN 9 and cuRAND 10 go with both CUDA 12 and CUDA 13 builds of onnxruntime.
_LINUX_LIBRARIES = (
    "libcudart.so.{major}",
    "libcublasLt.so.{major}",
    "libcublas.so.{major}",
    "libcurand.so.10",
    "libcudnn.so.9",
)
_WINDOWS_LIBRARIES = (
    "cudart64_{major}.dll",
    "cublasLt64_{major}.dll",
    "cublas64_{major}.dll",
    "cudnn64_9.dll",
)
_WHEEL_FOLDERS = ("*/lib", "*/bin", "*/bin/x86_64")


def missing_cuda_libraries(cuda_version: str, site_packages: Path) -> tuple[str, ...]:
    """Return what stands between this machine and a CUDA session; empty if nothing does.

    cuda_version: what onnxruntime was built for, such as '13.0'; '' means a build without CUDA.
    site_packages: the folder that holds onnxruntime; `nvidia/*/lib` in it is searched first.
    The driver is tried first and alone: without it no other library is touched. Libraries that
    load stay loaded. Takes up to a second where CUDA is there, well under 1 ms where it is not.
    """
    major = cuda_version.partition(".")[0]
    if not major.isdigit() or sys.platform == "darwin":
        return ("a CUDA build of onnxruntime",)
    driver_problem = _driver_problem()
    if driver_problem:
        return (driver_problem,)
    templates = _WINDOWS_LIBRARIES if sys.platform == "win32" else _LINUX_LIBRARIES
    names = [template.format(major=major) for template in templates]
    nvidia = site_packages / "nvidia"
    folders = sorted(folder for pattern in _WHEEL_FOLDERS for folder in nvidia.glob(pattern))
    return tuple(name for name in names if not _loads(name, folders))


def _driver_problem() -> str:
    """Say why the NVIDIA driver cannot be used; '' if it can and sees a device."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
        n_devices = ctypes.c_int(0)
        # CUresult cuInit(unsigned int flags); CUresult cuDeviceGetCount(int *count); 0 = success
        if driver.cuInit(ctypes.c_uint(0)) or driver.cuDeviceGetCount(ctypes.byref(n_devices)):
            return f"a working NVIDIA driver ({name} does not start)"
    except (OSError, AttributeError):
        return f"the NVIDIA driver ({name})"
    return "" if n_devices.value > 0 else "an NVIDIA GPU (the driver sees none)"


def _loads(name: str, folders: Sequence[Path]) -> bool:
    """Load a library, the wheels' copies first, then by the system's own search; False: none."""
    for place in (*(str(f / name) for f in folders if (f / name).is_file()), name):
        with contextlib.suppress(OSError):
            ctypes.CDLL(place)
            return True
    return False


Device = Literal["auto", "cpu", "cuda"]
Provider = Literal["CPU", "CUDA"]

INPUT_NAME = "hidden_state"
OUTPUT_NAME = "harmful_score"

_PROVIDER_NAMES: Mapping[Provider, str] = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
}
_OUTPUT_NAMES = [OUTPUT_NAME]
_FATAL_ONLY = 4  # onnxruntime's log severity: 0 verbose … 4 fatal
_TIMED_BATCHES = (1, 8)  # lazy re-ranking scores one state, a rejected step the sampler's top-k
_N_WARM_UPS = 5
_N_TIMED_RUNS = 25
_MAX_PROVIDER_DIFFERENCE = 1e-3


class ProbeSession(Protocol):
    """The part of onnxruntime.InferenceSession that is used here."""

    def run(
        self, output_names: list[str], input_feed: dict[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]: ...
    def run_with_iobinding(self, iobinding: Any) -> None: ...
    def io_binding(self) -> Any: ...
    def get_providers(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class TimedSession:
    """A session that has been run: where it runs, what it answered and how long that took."""

    session: ProbeSession
    provider: Provider
    reference_scores: NDArray[np.float32]
    median_s: tuple[float, ...]  # one per size in _TIMED_BATCHES


class SingleState:
    """Scores one state through buffers that are bound once; one thread at a time.

    Every token is scored so, between two decodes that leave the caches cold: there a plain run
    takes 160 µs, most of it for what it makes anew, and a bound one 30 µs less.
    """

    def __init__(self, session: ProbeSession, n_features: int) -> None:
        self._session: ProbeSession | None = session
        self._lock = threading.Lock()
        self._state: NDArray[np.float32] = np.zeros((1, n_features), dtype=np.float32)
        self._score: NDArray[np.float32] = np.zeros((1, 1), dtype=np.float32)
        self._binding = session.io_binding()
        for bind, name, array in (
            (self._binding.bind_input, INPUT_NAME, self._state),
            (self._binding.bind_output, OUTPUT_NAME, self._score),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `plain_run`'s, for states (1, n_features)."""
        with self._lock:
            if self._session is None:
                raise RuntimeError("it is closed")
            self._state[:] = states
            self._score[:] = np.nan  # a run that writes nothing must not repeat the last score
            self._session.run_with_iobinding(self._binding)
            return np.array(self._score, dtype=np.float32)

    def close(self) -> None:
        """Free the session."""
        with self._lock:
            self._session = self._binding = None


_Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # float32 (n, n_features) → (n, 1)


def plain_run(session: ProbeSession) -> _Run:
    """The session's own run, for any number of states."""
    return lambda states: session.run(_OUTPUT_NAMES, {INPUT_NAME: states})[0]


def open_probe_session(data: bytes, name: str, provider: Provider) -> ProbeSession:
    """Open a session that asks for this provider; it may still come back without it."""
    runtime = import_onnxruntime()
    runtime.set_default_logger_severity(_FATAL_ONLY)
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    # llama.cpp's threads own the cores: a second pool, or one that spins, slows both down.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    wanted: list[Any] = [_PROVIDER_NAMES["CPU"]]
    if provider == "CUDA":
        # TF32 would move scores; the default arena takes memory in ever larger steps.
        cuda_options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        wanted.insert(0, (_PROVIDER_NAMES["CUDA"], cuda_options))
    try:
        # No fallback: it prints, and it hides that the provider failed. And no session options
        # out of the file, which onnxruntime otherwise takes where the environment says so.
        session = runtime.InferenceSession(
            data, options, providers=wanted, enable_fallback=0, read_config_from_model=0
        )
    except Exception as error:  # onnxruntime's errors share no other base class
        raise ProbeFileError(
            f"cannot load probe {name!r}: onnxruntime refuses it ({_first_line(error)}); "
            "make it again with 'safesteer-edge convert probe'"
        ) from error
    return cast(ProbeSession, session)


def state_width(session: ProbeSession, name: str) -> int:
    """Return n_features, after checking the graph's one input and one output."""
    graph = cast(Any, session)
    inputs = [(node.name, node.type, list(node.shape)) for node in graph.get_inputs()]
    outputs = [(node.name, node.type, list(node.shape)) for node in graph.get_outputs()]
    good = (
        [node[:2] for node in inputs] == [(INPUT_NAME, "tensor(float)")]
        and [node[:2] for node in outputs] == [(OUTPUT_NAME, "tensor(float)")]
        and len(inputs[0][2]) == len(outputs[0][2]) == 2
        and not isinstance(inputs[0][2][0], int)  # any number of states at once
        and isinstance(inputs[0][2][1], int)
        and outputs[0][2][1] == 1
    )
    if not good:
        raise ProbeFileError(
            f"cannot use probe {name!r}: it maps {inputs} to {outputs}; expected one float32 "
            f"input {INPUT_NAME!r} [n, n_features] and one float32 output {OUTPUT_NAME!r} [n, 1]; "
            "convert it with 'safesteer-edge convert probe'"
        )
    return int(inputs[0][2][1])


def fastest_session(data: bytes, name: str, device: Device, cpu: TimedSession) -> TimedSession:
    """Return the CPU's session or a faster CUDA one; 'cuda' insists, 'cpu' does not look."""
    if device == "cpu":
        return cpu
    cuda = _timed_cuda_session(data, name, cpu)
    if isinstance(cuda, TimedSession):
        return cuda if device == "cuda" or sum(cuda.median_s) < sum(cpu.median_s) else cpu
    if device == "cuda":
        raise GuardError(
            f"cannot run probe {name!r} on CUDA: {cuda}; install what is missing "
            "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or let it run on the CPU"
        )
    return cpu


def _timed_cuda_session(data: bytes, name: str, cpu: TimedSession) -> TimedSession | str:
    """Return a CUDA session that agrees with the CPU's, or why there is none."""
    runtime = import_onnxruntime()
    if _PROVIDER_NAMES["CUDA"] not in runtime.get_available_providers():
        return "this onnxruntime has no CUDA provider"
    missing = missing_cuda_libraries(
        str(getattr(runtime, "cuda_version", "")), Path(runtime.__file__).parent.parent
    )
    if missing:
        return f"{', '.join(missing)} cannot be loaded"
    try:
        session = open_probe_session(data, name, "CUDA")
        if session.get_providers()[:1] != [_PROVIDER_NAMES["CUDA"]]:
            return "onnxruntime gave a CPU session instead"
        timed = timed_session(session, "CUDA", state_width(session, name), name)
    except (ProbeFileError, GuardError) as error:  # the CPU session of the same file works
        return f"the CUDA session fails ({error})"
    difference = float(np.abs(timed.reference_scores - cpu.reference_scores).max())
    if difference > _MAX_PROVIDER_DIFFERENCE:
        return f"its scores are up to {difference:.2g} away from the CPU's"
    return timed


def timed_session(
    session: ProbeSession, provider: Provider, n_features: int, name: str
) -> TimedSession:
    """Run a new session on made-up states: check that it scores, and take its median times."""
    batch = np.random.default_rng(0).standard_normal((max(_TIMED_BATCHES), n_features))
    states = batch.astype(np.float32)
    run = plain_run(session)
    try:
        scores = checked_run(run, states, name)
        medians = [_median_seconds(run, states[:n], name) for n in _TIMED_BATCHES]
    except GuardError as error:
        raise ProbeFileError(
            f"cannot use probe {name!r}: it fails on ordinary numbers ({error}); "
            "make it again with 'safesteer-edge calibrate' or 'safesteer-edge convert probe'"
        ) from error
    return TimedSession(session, provider, scores, tuple(medians))


def _median_seconds(run: _Run, states: NDArray[np.float32], name: str) -> float:
    """Return the median time of one checked call with these states."""
    n_runs = _N_WARM_UPS + _N_TIMED_RUNS
    times = timeit.repeat(lambda: checked_run(run, states, name), number=1, repeat=n_runs)
    return statistics.median(times[_N_WARM_UPS:])


def checked_run(run: _Run, states: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Run the graph and return its scores, float32 (n,), or raise GuardError."""
    try:
        scores = run(states)
    except Exception as error:  # onnxruntime's errors share no other base class
        raise GuardError(
            f"probe {name!r} failed, so the guard cannot judge this step: {_first_line(error)}"
        ) from error
    if scores.shape != (len(states), 1):
        raise GuardError(f"probe {name!r} gave scores of shape {scores.shape} for {len(states)}")
    # A NaN makes both comparisons false, so it is refused too.
    if not all(0.0 <= score <= 1.0 for score in scores.ravel().tolist()):
        raise GuardError(
            f"probe {name!r} gave a score that is not in [0, 1] ({scores.ravel().tolist()[:8]}), "
            "so the guard cannot judge this step"
        )
    return scores[:, 0]


def _first_line(error: Exception) -> str:
    """Return the first line of a foreign error's text, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
