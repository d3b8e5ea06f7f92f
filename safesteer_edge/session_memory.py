"""The memory that a session would take on this machine, planned before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from safesteer_edge.engine.devices import gpu_memory
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.memory.free_memory import free_memory
from safesteer_edge.memory.model_shape import read_model_shape
from safesteer_edge.memory.need import MemorySettings
from safesteer_edge.memory.plan import Machine, MemoryPlan, plan_memory
from safesteer_edge.model_choice import ModelChoice, choose_model
from safesteer_edge.settings import DEFAULT_N_CTX, SessionSettings


def this_machine() -> Machine:
    """What is free here, now: memory, and that of the GPUs."""
    free_bytes, what = free_memory()
    return Machine(free_bytes, what, gpu_memory())


def plan_for(settings: SessionSettings) -> MemoryPlan:
    """What `open_runtime` would load where, guarded where the settings say so. Loads nothing.

    Raises ModelFileError, SettingsError; the latter if it does not fit.
    """
    choice = choose_model(settings.model)
    info = check_language_model(choice.path)
    mmproj = settings.mmproj or choice.mmproj
    if mmproj is not None:
        check_projector_fits(mmproj, info)
    return plan_session(settings, choice, info, mmproj, has_guard=settings.guard != "off")


def plan_session(
    settings: SessionSettings,
    choice: ModelChoice,
    info: ModelInfo,
    mmproj: Path | None,
    *,
    has_guard: bool,
) -> MemoryPlan:
    """The plan for a model that was chosen and checked. Raises SettingsError if it does not fit."""
    return plan_memory(
        read_model_shape(choice.path),
        MemorySettings(
            n_ctx=min(settings.n_ctx or DEFAULT_N_CTX, info.n_ctx_train),
            kv_type=settings.kv_type,
            n_sequences=1 + (settings.sampling.top_k if has_guard else 1),
            has_guard=has_guard,
        ),
        this_machine(),
        projector_bytes=mmproj.stat().st_size if mmproj is not None else 0,
        n_gpu_layers=settings.n_gpu_layers,
    )
