"""The arithmetic of a plan, line by line, for people."""

from __future__ import annotations

from safesteer_edge.memory.need import N_CTX_STEP, kv_bytes, padded_n_ctx
from safesteer_edge.memory.plan import MemoryPlan, in_mib

_KIB = 1 << 10


def explain_plan(plan: MemoryPlan) -> list[str]:
    """One line per part, then what there is, and which layers go to a GPU."""
    model, settings, need = plan.model, plan.settings, plan.need
    n_layer, n_ctx = len(model.layers), padded_n_ctx(settings.n_ctx)
    a_token = kv_bytes(model.kv_width, settings.kv_type)
    blocks = sum(layer.weight_bytes for layer in model.layers)
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
        ("program", need.process, "estimated, " + _program(plan)),
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


def _program(plan: MemoryPlan) -> str:
    return "with the guard's probe" if plan.settings.has_guard else "without a guard"


def _free(plan: MemoryPlan) -> str:
    free = plan.machine.free_bytes
    if free is None:
        return "how much is free is not known on this system"
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
