"""A first guess at what a model needs that is not here yet, from its name and quantization."""

from __future__ import annotations

from typing import Final, Literal

from safesteer_edge.errors import SettingsError
from safesteer_edge.memory.model_shape import ModelShape
from safesteer_edge.memory.need import MemorySettings
from safesteer_edge.memory.plan import GPU_RESERVE_BYTES, Machine, plan_memory

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
