"""Whether llama.cpp and ONNX Runtime start, and whether they suit this machine's CPU and GPU."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

from safesteer_edge.doctor.check import Check, fail, ok, warn
from safesteer_edge.doctor.children import (
    ChildFailure,
    DriverFacts,
    LlamaFacts,
    OnnxRuntimeFacts,
)
from safesteer_edge.doctor.packages import (
    ONNX_PACKAGE,
    ONNX_PACKAGES,
    build_llama,
    installed_version,
    onnx_requirement,
    repair_command,
)
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.processes.pip_commands import (
    LLAMA_PACKAGE,
    install_command,
    reinstall_command,
    uninstall_command,
)

_CPUINFO = Path("/proc/cpuinfo")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CUDA_COMPILER = Path("/usr/local/cuda/bin/nvcc")
_CUDA_PROVIDER = "CUDAExecutionProvider"
_SEE_LLAMA = "see 'llama.cpp' above"


def check_llama(llama: LlamaFacts | ChildFailure) -> list[Check]:
    """Whether llama_cpp imports and its backend starts."""
    name = "llama.cpp"
    if isinstance(llama, LlamaFacts):
        return [ok(name, f"{LLAMA_PACKAGE} {llama.binding_version} imports and starts")]
    if llama.cause == "illegal instruction":
        finding = f"built for another CPU: {llama.message}"
        return [fail(name, finding, build_llama("GGML_NATIVE=on"))]
    return [llama.check(name, repair_command(LLAMA_PACKAGE))]


def check_callback(llama: LlamaFacts | ChildFailure) -> list[Check]:
    """Whether hidden states that llama.cpp exports by its callback alone are cheap to read."""
    name = "hidden states"
    if isinstance(llama, ChildFailure):
        return [warn(name, "unknown, because llama.cpp does not start", _SEE_LLAMA)]
    if llama.has_c_callback:
        return [ok(name, "read from every architecture, at less than 1 % of a token")]
    finding = "read from some architectures at 3 % of a token: our callback in C was not built"
    build = f"{reinstall_command('-e', '.')} (in the source folder)"
    return [warn(name, finding, f"install a C compiler, then: {build}")]


def check_processor(
    llama: LlamaFacts | ChildFailure, *, cpuinfo: Path = _CPUINFO, cpu_quota: Path = _CPU_QUOTA
) -> list[Check]:
    """Usable cores, the build's instruction sets, and AMX."""
    checks = [_check_cores(cpu_quota)]
    if isinstance(llama, ChildFailure):
        finding = "unknown, because llama.cpp does not start"
        return [*checks, warn("cpu features", finding, _SEE_LLAMA)]
    return [*checks, _check_features(llama, cpuinfo), _check_amx(llama)]


def check_llama_gpu(
    llama: LlamaFacts | ChildFailure,
    driver: DriverFacts | ChildFailure,
    *,
    has_nvidia_device: bool,
) -> list[Check]:
    """Whether llama.cpp can offload to the GPU that is here.

    has_nvidia_device: the bus lists one, whatever the driver says.
    """
    name = "llama.cpp gpu"
    if isinstance(llama, ChildFailure):
        return [warn(name, "unknown, because llama.cpp does not start", _SEE_LLAMA)]
    seen = _seen(driver)
    if llama.supports_gpu_offload:
        return [ok(name, f"llama.cpp can offload; {seen}")]
    problem = _driver_problem(driver, has_nvidia_device=has_nvidia_device)
    if problem is not None:
        return [warn(name, *problem)]
    if isinstance(driver, DriverFacts) and driver.has_gpu:
        return [_check_cuda_build(llama, seen)]
    if sys.platform == "darwin" and platform.machine() == "arm64":
        finding = "this Mac has a GPU, but llama.cpp is built without Metal"
        return [warn(name, finding, build_llama("GGML_METAL=on"))]
    return [ok(name, f"{seen}; llama.cpp runs on the CPU")]


def check_onnxruntime(
    onnxruntime: OnnxRuntimeFacts | ChildFailure, driver: DriverFacts | ChildFailure
) -> list[Check]:
    """Its providers; a listed one need not work, so CUDA's libraries have been looked for."""
    name = "onnxruntime"
    if isinstance(onnxruntime, ChildFailure):
        return [onnxruntime.check(name, repair_command(ONNX_PACKAGE))]
    listed = ", ".join(
        provider.removesuffix("ExecutionProvider") for provider in onnxruntime.providers
    )
    finding = f"{onnxruntime.version} imports and lists {listed}"
    has_gpu = isinstance(driver, DriverFacts) and driver.has_gpu
    if not has_gpu:
        return [ok(name, f"{finding}; without an NVIDIA GPU it runs on the CPU")]
    if _CUDA_PROVIDER not in onnxruntime.providers:
        installed = [package for package in ONNX_PACKAGES if installed_version(package)]
        remove = f"{uninstall_command(*installed)} && " if installed else ""
        return [
            warn(
                name,
                f"{finding}: no CUDA, though there is a GPU",
                f"{remove}{install_command('onnxruntime-gpu[cuda,cudnn]')}",
            )
        ]
    if onnxruntime.missing_for_cuda:
        return [
            warn(
                name,
                f"{finding}, but CUDA cannot start: {', '.join(onnxruntime.missing_for_cuda)} "
                "cannot be loaded",
                install_command(onnx_requirement("[cuda,cudnn]")),
            )
        ]
    return [ok(name, f"{finding}; CUDA's libraries load")]


def check_nothing_phones_home(onnxruntime: OnnxRuntimeFacts | ChildFailure) -> list[Check]:
    """Whether its telemetry is off: switched on, it leaves files as soon as it is imported."""
    name = "nothing phones home"
    if isinstance(onnxruntime, ChildFailure):
        remedy = "fix the problem that 'onnxruntime' above reports"
        return [warn(name, "not checked: ONNX Runtime does not import", remedy)]
    found = [*onnxruntime.files_written, *(["a socket"] if onnxruntime.n_sockets else [])]
    if found:
        return [
            warn(
                name,
                f"importing ONNX Runtime {onnxruntime.version} left {', '.join(found)}, though its "
                "telemetry was told to stay off",
                f"report it, and use one without: {install_command(f'{ONNX_PACKAGE}<1.29')}",
            )
        ]
    sockets = "" if onnxruntime.n_sockets is None else " and opened no socket"
    return [
        ok(
            name,
            f"checked: ONNX Runtime {onnxruntime.version}, imported with its telemetry off in an "
            f"empty home folder, wrote no file{sockets}",
        )
    ]


def _check_cores(cpu_quota: Path) -> Check:
    n_usable, n_all = n_usable_cores(), os.cpu_count() or 1
    quota = _quota(cpu_quota)
    if quota is not None and quota < n_usable:
        n_threads = max(1, int(quota))
        return warn(
            "cpu cores",
            f"{n_usable} usable, and a control group allows the time of {quota:g}: threads beyond "
            "that wait for each other",
            f"pass --threads {n_threads}",
        )
    return ok("cpu cores", f"{n_usable} of {n_all} usable")


def _quota(cpu_quota: Path) -> float | None:
    """Cores' worth of time that the control group allows: the file says 'max' or 'µs period'."""
    try:
        allowed, period = cpu_quota.read_text().split()
        return int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _check_features(llama: LlamaFacts, cpuinfo: Path) -> Check:
    features = llama.cpu_features
    finding = ", ".join(features) or "none listed"
    # ggml's kernels without AVX2 are several times slower; a portable wheel may leave it out.
    if "avx2" in _cpu_flags(cpuinfo) and "AVX2" not in features:
        finding = f"the CPU has AVX2, and this build of llama.cpp does not use it ({finding})"
        return warn("cpu features", finding, build_llama("GGML_NATIVE=on"))
    return ok("cpu features", finding)


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Flags of the first core, as Linux on x86 lists them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _check_amx(llama: LlamaFacts) -> Check:
    if not llama.has_amx:
        return ok("amx", "not in this build")
    if llama.avoids_extra_buffer_types:
        return ok("amx", "in this build, and avoided: extra buffer types are off, as it crashes")
    return fail(
        "amx", "in this build, and not avoided: prompts will crash", build_llama("GGML_AMX=off")
    )


def _check_cuda_build(llama: LlamaFacts, seen: str) -> Check:
    name = "llama.cpp gpu"
    options = ["GGML_CUDA=on"]
    if llama.is_built_with_cuda:
        finding = f"{seen}, and llama.cpp is built with CUDA but sees no device"
        return warn(name, finding, f"build it for this driver: {build_llama(*options)}")
    finding = f"{seen}, and llama.cpp is built without CUDA: it runs on the CPU"
    if shutil.which("nvcc"):
        return warn(name, finding, build_llama(*options))
    if _CUDA_COMPILER.is_file():  # as on Jetson, where it is not on PATH
        return warn(name, finding, build_llama(*options, f"CMAKE_CUDA_COMPILER={_CUDA_COMPILER}"))
    remedy = f"install the CUDA toolkit (there is no nvcc on PATH), then: {build_llama(*options)}"
    return warn(name, finding, remedy)


def _seen(driver: DriverFacts | ChildFailure) -> str:
    if isinstance(driver, ChildFailure):
        return "the NVIDIA driver is unknown"
    if driver.has_gpu:
        return f"{', '.join(driver.gpu_names)} (driver for CUDA {driver.cuda_version})"
    return "an NVIDIA driver, but no GPU" if driver.is_installed else "no NVIDIA driver"


def _driver_problem(
    driver: DriverFacts | ChildFailure, *, has_nvidia_device: bool
) -> tuple[str, str] | None:
    """What is wrong with the driver and what to do; None if it works or nothing needs it."""
    if isinstance(driver, ChildFailure):
        return f"the NVIDIA driver fails: {driver.message}", "run 'nvidia-smi' to see what it says"
    if driver.problem is not None:
        return (
            f"the NVIDIA driver does not start: {driver.problem}",
            "run 'nvidia-smi' to see what it says; after an update of the driver, restart",
        )
    if has_nvidia_device and not driver.has_gpu:
        return (
            "there is an NVIDIA GPU, but no driver that reaches it",
            "install NVIDIA's driver; in a container, start it with GPU access (--gpus all)",
        )
    return None
