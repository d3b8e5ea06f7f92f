"""Whether ONNX Runtime works, and whether a GPU that is here can serve it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safesteer_edge.doctor.check import (
    Check,
    DriverFacts,
    OnnxRuntimeFacts,
    fail,
    failure_of_message,
    ok,
    warn,
)
from safesteer_edge.doctor.child_process import ChildFailure
from safesteer_edge.doctor.packages import (
    ONNX_PACKAGE,
    ONNX_PACKAGES,
    installed_version,
    onnx_requirement,
    repair_command,
)
from safesteer_edge.formats.user_folders import (
    user_cache_folder,
    user_config_folder,
    user_data_folder,
)
from safesteer_edge.library.memory_plan import CGROUP, MEMINFO, free_memory
from safesteer_edge.processes.pip_commands import install_command, uninstall_command

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


# -- whether there is memory for the default model -------------------------------------------------

_MIB = 1 << 20
# Measured with the default model: 258 MiB in use after its first token, of which 94 are the mapped
# file; a full cache of 4096 tokens adds 94, ONNX Runtime some 60. Where llama.cpp repacks the
# weights it holds them twice.
_BESIDES_WEIGHTS_BYTES = 320 * _MIB


def check_memory(
    model_bytes: int | None, *, meminfo: Path = MEMINFO, cgroup: Path = CGROUP
) -> list[Check]:
    """Available memory against what a model of this size needs; None: its size is not known."""
    name = "memory"
    available, what = free_memory(meminfo, cgroup)
    if available is None:
        return [ok(name, "how much is free is not known on this system")]
    found = f"{available // _MIB} MiB {what}"
    if model_bytes is None:
        return [ok(name, found)]
    needed = 2 * model_bytes + _BESIDES_WEIGHTS_BYTES
    finding = f"{found}; the default model needs about {needed // _MIB} MiB"
    if available < model_bytes:
        return [fail(name, finding, "close other programs, or use a machine with more memory")]
    if available < needed:
        return [warn(name, finding, "close other programs, or pass a smaller --ctx")]
    return [ok(name, finding)]


# -- whether the user's folders can be written to; nothing is left behind in them ------------------


def check_folders() -> list[Check]:
    """One check for each of the data, cache and configuration folders."""
    return [
        _check_folder("data folder", user_data_folder()),
        _check_folder("cache folder", user_cache_folder()),
        _check_folder("config folder", user_config_folder()),
    ]


def _check_folder(name: str, folder: Path) -> Check:
    """A folder that is not there yet is fine if it can be made."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        return fail(name, f"{str(existing)!r} is not a folder", f"move {str(existing)!r} away")
    try:
        # Permission bits say little (root, read-only mounts, access lists): try, and leave nothing.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return fail(
            name,
            f"{str(existing)!r} cannot be written to ({error.strerror})",
            f"make {str(existing)!r} writable for this user",
        )
    note = "writable" if existing == folder else "not there yet, and can be made"
    return ok(name, f"{str(folder)!r}, {note}")
