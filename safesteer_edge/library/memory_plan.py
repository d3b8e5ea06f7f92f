"""What fits: GPU layers chosen from free memory, and a refusal that names what would fit.

Exact parts decide a refusal (weights, cache, state, projector); what is only estimated gives a
warning. Nothing is decided where it is not known how much memory is free.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.gguf_header import KV_TYPES, KvType
from safesteer_edge.library.memory_need import (
    MIN_N_CTX,
    N_CTX_STEP,
    MemoryNeed,
    MemorySettings,
    ModelShape,
    fits_blocks,
    kv_bytes,
    memory_need,
    padded_n_ctx,
)

_MIB = 1 << 20
_F32_BYTES = 4
# A driver's own context and scratch space, and room for what else draws on the screen.
GPU_RESERVE_BYTES = 400 * _MIB


class Gpu(Protocol):
    """What is asked of a GPU; `engine.native.GpuMemory` is one."""

    @property
    def name(self) -> str: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def is_integrated(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Machine:
    """free_bytes: of the machine's memory, None if that is not known. what: as people say it."""

    free_bytes: int | None
    what: str
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What will be loaded where. gpu_bytes: of n_gpu_layers, 0 without one.

    n_gpu_layers: as llama.cpp counts: the output is one, the blocks follow from the last one on.
    cpu_bytes: of the machine's memory, estimated parts included.
    """

    model: ModelShape
    settings: MemorySettings
    need: MemoryNeed
    machine: Machine
    n_gpu_layers: int
    gpu_bytes: int
    cpu_bytes: int

    @property
    def is_tight(self) -> bool:
        """True if it should fit by its exact parts, but not with all that is estimated."""
        return self.machine.free_bytes is not None and self.cpu_bytes > self.machine.free_bytes


def plan_memory(
    model: ModelShape,
    settings: MemorySettings,
    machine: Machine,
    *,
    projector_bytes: int = 0,
    n_gpu_layers: int | None = None,
) -> MemoryPlan:
    """The plan for these settings. n_gpu_layers: None: as many as fit.

    Raises SettingsError if the exact parts do not fit, with the largest settings that would, and
    for a cache type that the model's heads cannot be stored in.
    """
    if not fits_blocks(model, settings.kv_type):
        raise SettingsError(
            f"--kv-type {settings.kv_type}: the heads of {model.name!r} are {model.key_widths[0]} "
            "wide, which is not a multiple of 32; use --kv-type f16"
        )
    plan = _plan(model, settings, machine, projector_bytes, n_gpu_layers)
    if not _fits(plan):
        raise SettingsError(_refusal(plan, projector_bytes, n_gpu_layers))
    return plan


def _plan(
    model: ModelShape,
    settings: MemorySettings,
    machine: Machine,
    projector_bytes: int,
    n_gpu_layers: int | None,
) -> MemoryPlan:
    need = memory_need(model, settings, projector_bytes)
    chosen = n_gpu_layers
    if chosen is None:
        chosen = _most_gpu_layers(model, settings, need, machine.gpus)
    chosen = min(chosen, len(model.layers) + 1) if machine.gpus else 0
    moved = _layer_bytes(model, settings, chosen)
    return MemoryPlan(
        model=model,
        settings=settings,
        need=need,
        machine=machine,
        n_gpu_layers=chosen,
        gpu_bytes=_gpu_bytes(model, settings, need, chosen),
        # A layer that is on the GPU is no longer in memory, but for an integrated GPU.
        cpu_bytes=need.total - (0 if any(gpu.is_integrated for gpu in machine.gpus) else moved),
    )


def _most_gpu_layers(
    model: ModelShape, settings: MemorySettings, need: MemoryNeed, gpus: Sequence[Gpu]
) -> int:
    room = sum(max(0, gpu.free_bytes - GPU_RESERVE_BYTES) for gpu in gpus)
    for n_layers in range(len(model.layers) + 1, 0, -1):
        if _gpu_bytes(model, settings, need, n_layers) <= room:
            return n_layers
    return 0


def _gpu_bytes(
    model: ModelShape, settings: MemorySettings, need: MemoryNeed, n_gpu_layers: int
) -> int:
    """What so many layers take on GPUs; a tied output is a copy of the embedding there."""
    if n_gpu_layers == 0:
        return 0
    tied = model.input_bytes if model.has_tied_output else 0
    return _layer_bytes(model, settings, n_gpu_layers) + tied + need.compute + need.logits


def _layer_bytes(model: ModelShape, settings: MemorySettings, n_gpu_layers: int) -> int:
    """Weights, cache and state of the layers that leave the machine's memory."""
    if n_gpu_layers == 0:
        return 0
    n_ctx = padded_n_ctx(settings.n_ctx)
    n_states = settings.n_sequences + 1
    blocks = model.layers[len(model.layers) - (n_gpu_layers - 1) :]
    return model.output_bytes + sum(
        block.weight_bytes
        + kv_bytes(block.kv_width, settings.kv_type) * n_ctx
        + block.state_width * n_states * _F32_BYTES
        for block in blocks
    )


def _fits(plan: MemoryPlan) -> bool:
    free = plan.machine.free_bytes
    if free is None:
        return True
    estimated = plan.need.total - plan.need.exact
    return plan.cpu_bytes - estimated <= free


def _refusal(plan: MemoryPlan, projector_bytes: int, n_gpu_layers: int | None) -> str:
    need, settings = plan.need, plan.settings
    parts = [f"weights {in_mib(need.weights)}", f"cache {in_mib(need.kv + need.state)}"]
    if need.projector:
        parts.append(f"projector {in_mib(need.projector)}")
    free = plan.machine.free_bytes or 0
    fitting = [
        f"--ctx {n_ctx}" + (f" --kv-type {kv_type}" if kv_type != "f16" else "")
        for kv_type, n_ctx in _what_would_fit(plan, projector_bytes, n_gpu_layers)
    ]
    if fitting:
        remedy = f"the largest that fits: {', or '.join(fitting)}"
    else:
        remedy = (
            "no context of it fits: take a smaller quantization, a file well below "
            f"{in_mib(free)}, or a smaller model, or close other programs"
        )
    return (
        f"{plan.model.name!r} does not fit into memory with --ctx {settings.n_ctx} "
        f"--kv-type {settings.kv_type}: {', '.join(parts)}, and {in_mib(free)} are "
        f"{plan.machine.what}; {remedy}"
    )


def _what_would_fit(
    plan: MemoryPlan, projector_bytes: int, n_gpu_layers: int | None
) -> Iterator[tuple[KvType, int]]:
    """For each cache type the largest context that fits, while a smaller type gives more."""
    most = 0
    for kv_type in KV_TYPES:
        if not fits_blocks(plan.model, kv_type):
            continue
        low, high = 0, padded_n_ctx(plan.settings.n_ctx) // N_CTX_STEP
        while low < high:  # the largest multiple of the step that fits
            middle = (low + high + 1) // 2
            settings = replace(plan.settings, kv_type=kv_type, n_ctx=middle * N_CTX_STEP)
            tried = _plan(plan.model, settings, plan.machine, projector_bytes, n_gpu_layers)
            low, high = (middle, high) if _fits(tried) else (low, middle - 1)
        n_ctx = low * N_CTX_STEP
        if n_ctx >= MIN_N_CTX and n_ctx > most:
            yield kv_type, min(n_ctx, plan.settings.n_ctx)
            most = n_ctx


def in_mib(n_bytes: int | None) -> str:
    """Bytes as people read them; None: not known."""
    if n_bytes is None:
        return "an unknown amount"
    return f"{n_bytes / _MIB:.0f} MiB" if n_bytes < 10 << 30 else f"{n_bytes / (1 << 30):.1f} GiB"


# -- how much memory is free on this machine -------------------------------------------------------

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> tuple[int | None, str]:
    """Bytes, and whether they are what is available or all that is built in; None: not known."""
    available = _from_meminfo(meminfo)
    if available is None:
        return _from_sysctl(), "built in (how much of it is free is not known)"
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


# -- the arithmetic of a plan, line by line, for people --------------------------------------------

_KIB = 1 << 10


def explain_plan(plan: MemoryPlan) -> list[str]:
    """One line per part, then what there is, and which layers go to a GPU."""
    model, settings, need = plan.model, plan.settings, plan.need
    n_layer, n_ctx = len(model.layers), padded_n_ctx(settings.n_ctx)
    a_token = kv_bytes(model.kv_width, settings.kv_type)
    blocks = sum(layer.weight_bytes for layer in model.layers)
    program = "with the guard's probe" if settings.has_guard else "without a guard"
    rows = [
        (
            "weights",
            need.weights,
            f"{n_layer} layers of {in_mib(blocks // max(1, n_layer))}, "
            f"embedding {in_mib(model.input_bytes)}, output {in_mib(model.output_bytes)}",
        ),
        (
            "cache",
            need.kv,
            f"{n_ctx} tokens × {model.kv_width} numbers in {settings.kv_type} = "
            f"{a_token / _KIB:.1f} KiB a token",
        ),
    ]
    if need.state:
        rows.append(("state", need.state, f"recurrent, of {settings.n_sequences + 1} sequences"))
    if need.projector:
        rows.append(("projector", need.projector, "its file"))
    rows += [
        ("buffers", need.output + need.compute, f"estimated, batches of {settings.n_batch}"),
        ("program", need.process, f"estimated, {program}"),
        ("together", need.total, f"{_free(plan)}"),
    ]
    lines = [f"{name + ':':<11} {in_mib(n_bytes):>10}  {text}" for name, n_bytes, text in rows]
    if model.sliding_window:
        lines.append(
            f"some layers look back {model.sliding_window} tokens only; their cache is kept whole, "
            "so that a conversation can go back"
        )
    if settings.n_ctx % N_CTX_STEP:
        lines.append(f"--ctx {settings.n_ctx} is rounded up to {n_ctx}")
    return [*lines, *_gpu_lines(plan)]


def _free(plan: MemoryPlan) -> str:
    free = plan.machine.free_bytes
    if free is None:
        return "how much memory is free is not known on this system"
    return f"{in_mib(free)} {plan.machine.what}" + (": tight" if plan.is_tight else "")


def _gpu_lines(plan: MemoryPlan) -> list[str]:
    if not plan.machine.gpus:
        return ["GPU:        none that this llama.cpp can use: all layers on the CPU"]
    n_all = len(plan.model.layers) + 1
    lines = [f"GPU:        {gpu.name}, {in_mib(gpu.free_bytes)} free" for gpu in plan.machine.gpus]
    lines.append(
        f"on the GPU: {plan.n_gpu_layers} of {n_all} layers (the output counts as one), "
        f"{in_mib(plan.gpu_bytes)} with buffers; in memory then {in_mib(plan.cpu_bytes)}"
    )
    return lines


# -- A first guess at what a model needs that is not here yet, from its name and quantization ------

# Bits a weight, of whole files: the mixtures keep some tensors finer than their name says.
_BITS: Final[dict[str, float]] = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q4_K_M": 4.9,
    "Q4_K": 4.9,
    "Q4_K_S": 4.6,
    "Q4_1": 5.0,
    "Q4_0": 4.6,
    "Q4": 4.9,
    "Q3_K_M": 3.9,
    "Q2_K": 3.2,
    "IQ2_M": 2.8,
}
_BESIDES_WEIGHTS = 1.15  # projector and cache, as a share of the weights
_PROGRAM_BYTES = 300 << 20

Fit = Literal["gpu", "part", "yes", "tight", "no", "?"]


def guessed_need(parameters_b: float | None, quantization: str) -> int | None:
    """Bytes for a context of 4096 tokens, within a third or so; None if too little is known."""
    bits = _BITS.get(quantization.upper())
    if parameters_b is None or bits is None:
        return None
    return int(parameters_b * 1e9 * bits / 8 * _BESIDES_WEIGHTS) + _PROGRAM_BYTES


def guessed_fit(need_bytes: int | None, machine: Machine) -> Fit:
    """Where it would go: all on GPUs, in memory, or nowhere."""
    if need_bytes is None:
        return "?"
    if machine.gpus and need_bytes <= sum(g.free_bytes - GPU_RESERVE_BYTES for g in machine.gpus):
        return "gpu"
    if machine.free_bytes is None:
        return "?"
    return "yes" if need_bytes <= machine.free_bytes else "no"


def planned_fit(
    model: ModelShape, settings: MemorySettings, machine: Machine, projector_bytes: int
) -> tuple[int | None, Fit]:
    """Bytes and where it goes, by the arithmetic for a model that is here."""
    try:
        plan = plan_memory(model, settings, machine, projector_bytes=projector_bytes)
    except SettingsError:
        return None, "no"
    if plan.n_gpu_layers:
        return plan.need.total, "gpu" if plan.n_gpu_layers > len(model.layers) else "part"
    return plan.need.total, "tight" if plan.is_tight else "yes"
