"""How much memory is free on this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int | None, str]:
    """Bytes, and whether they are what is available or all that is built in; None: not known."""
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
