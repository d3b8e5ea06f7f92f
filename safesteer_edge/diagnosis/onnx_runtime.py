"""Whether ONNX Runtime works, and whether a GPU that is here can serve it."""

from __future__ import annotations

from safesteer_edge.diagnosis.check import Check, fail, failure_of_message, ok, warn
from safesteer_edge.diagnosis.child_process import ChildFailure
from safesteer_edge.diagnosis.facts import DriverFacts, OnnxRuntimeFacts
from safesteer_edge.diagnosis.packages import (
    ONNX_PACKAGE,
    ONNX_PACKAGES,
    installed_version,
    onnx_requirement,
    repair_command,
)
from safesteer_edge.diagnosis.pip_commands import (
    install_command,
    uninstall_command,
)

_CUDA = "CUDAExecutionProvider"


def check_onnxruntime(
    onnxruntime: OnnxRuntimeFacts | ChildFailure, driver: DriverFacts | ChildFailure
) -> list[Check]:
    """Its providers; a listed one need not work, so CUDA's libraries have been looked for."""
    name = "onnxruntime"
    if isinstance(onnxruntime, ChildFailure):
        if onnxruntime.is_ours:
            return [failure_of_message(name, onnxruntime.message)]
        return [fail(name, onnxruntime.message, repair_command(ONNX_PACKAGE))]
    listed = ", ".join(
        provider.removesuffix("ExecutionProvider") for provider in onnxruntime.providers
    )
    finding = f"{onnxruntime.version} imports and lists {listed}"
    has_gpu = isinstance(driver, DriverFacts) and driver.has_gpu
    if not has_gpu:
        return [ok(name, f"{finding}; without an NVIDIA GPU it runs on the CPU")]
    if _CUDA not in onnxruntime.providers:
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
        remedy = "mend what the check 'onnxruntime' above says"
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
