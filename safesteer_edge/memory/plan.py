"""What fits: GPU layers chosen from free memory, and a refusal that names what would fit.

Exact parts decide a refusal (weights, cache, state, projector); what is only estimated gives a
warning. Nothing is decided where it is not known how much memory is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from safesteer_edge.errors import SettingsError
from safesteer_edge.memory.kv_type import KV_TYPES, KvType
from safesteer_edge.memory.model_shape import ModelShape
from safesteer_edge.memory.need import (
    MIN_N_CTX,
    N_CTX_STEP,
    MemoryNeed,
    MemorySettings,
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
    """What is asked of a GPU; `engine.devices.GpuMemory` is one."""

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
        cpu_bytes=need.total - (0 if _is_integrated(machine.gpus) else moved),
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


def _is_integrated(gpus: Sequence[Gpu]) -> bool:
    return any(gpu.is_integrated for gpu in gpus)


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
