"""Whether there is memory for the default model."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from safesteer_edge.diagnosis.check import Check, fail, ok, warn

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_MIB = 1 << 20
# Measured with the default model: 258 MiB in use after its first token, of which 94 are the mapped
# file; a full cache of 4096 tokens adds 94, ONNX Runtime some 60. Where llama.cpp repacks the
# weights it holds them twice.
_BESIDES_WEIGHTS_BYTES = 320 * _MIB


def check_memory(
    model_bytes: int | None, *, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP
) -> list[Check]:
    """Available memory against what a model of this size needs; None: its size is not known."""
    name = "memory"
    available, what = _available(meminfo, cgroup)
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


def _available(meminfo: Path, cgroup: Path) -> tuple[int | None, str]:
    """Bytes, and whether they are what is available or all that is built in."""
    available = _from_meminfo(meminfo)
    if available is None:
        return _from_sysctl(), "built in (how much is free is not known)"
    limit = _cgroup_room(cgroup)
    if limit is not None and limit < available:
        return limit, "left in this control group"
    return available, "available"


def _from_meminfo(meminfo: Path) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def _cgroup_room(cgroup: Path) -> int | None:
    """What a memory limit (control groups, version 2) leaves; None without one."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or 'max'
        return None
    return max(0, limit - used)


def _from_sysctl() -> int | None:
    """All memory of a Mac or BSD, which gives no figure of what is available."""
    for key in ("hw.memsize", "hw.physmem"):
        try:
            ended = subprocess.run(
                ["sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=True
            )
            return int(ended.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
    return None
