"""Whether there is memory for the default model, and whether the user's folders can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safesteer_edge.doctor.check import Check, fail, ok, warn
from safesteer_edge.formats.user_folders import (
    user_cache_folder,
    user_config_folder,
    user_data_folder,
)
from safesteer_edge.library.memory_plan import CGROUP, MEMINFO, free_memory

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
        return [ok(name, "how much memory is free is not known on this system")]
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
    note = "writable" if existing == folder else "does not exist yet, but can be created"
    return ok(name, f"{str(folder)!r}, {note}")
