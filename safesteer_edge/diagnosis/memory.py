"""Whether there is memory for the default model."""

from __future__ import annotations

from pathlib import Path

from safesteer_edge.diagnosis.check import Check, fail, ok, warn
from safesteer_edge.memory.free_memory import CGROUP, MEMINFO, free_memory

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
