"""One finding of the diagnosis, and the wall around each examination."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from safesteer_edge.errors import SafeSteerError

Status = Literal["ok", "warn", "fail"]

SEE_PACKAGES = "install what the checks of packages above call for"
REPORT_IT = "run 'safesteer-edge --verbose doctor' and report what it prints"

logger = logging.getLogger("safesteer_edge")


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one subject. remedy: what to do; None exactly if status is 'ok'."""

    name: str
    status: Status
    finding: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "ok") != (self.remedy is None):
            raise ValueError(f"check {self.name!r} is {self.status!r} with remedy {self.remedy!r}")


def ok(name: str, finding: str) -> Check:
    """Nothing to do."""
    return Check(name, "ok", finding)


def warn(name: str, finding: str, remedy: str) -> Check:
    """It works, and worse than it could."""
    return Check(name, "warn", finding, remedy)


def fail(name: str, finding: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, "fail", finding, remedy)


def failure_of(name: str, error: Exception) -> Check:
    """The failed check that an exception makes.

    Our own messages end with what to do, after a semicolon: that part becomes the remedy.
    """
    message = " ".join(str(error).split())
    if isinstance(error, SafeSteerError):
        return failure_of_message(name, message)
    if isinstance(error, ImportError):
        return fail(name, f"{type(error).__name__}: {message}", SEE_PACKAGES)
    return fail(name, f"unexpected {type(error).__name__}: {message}", REPORT_IT)


def failure_of_message(name: str, message: str) -> Check:
    """The failed check that the text of one of our own errors makes."""
    finding, _, remedy = message.rpartition("; ")
    return fail(name, finding, remedy) if finding else fail(name, message, REPORT_IT)


def isolated(name: str, examine: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    """What an examination finds; an exception in it is a failed check and goes no further."""
    try:
        return examine()
    except Exception as error:  # whatever is wrong with a machine is a finding
        logger.debug("examining %s failed", name, exc_info=True)
        return [failure_of(name, error)]


# -- what the child processes of the diagnosis report; plain values that go through JSON -----------


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
        names: list[str] = []
        for entry in features.split(" | "):
            name, _, value = entry.strip(" |").partition(" = ")
            if " : " in name:  # the next backend's part begins
                break
            if value and value != "0":
                names.append(name if value == "1" else f"{name}={value}")
        return tuple(names)

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
