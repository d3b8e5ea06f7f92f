"""A bench's result as text for people and as JSON with everything raw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from safesteer_edge.evaluation.bench import BenchResult
from safesteer_edge.evaluation.bench_summary import (
    RATIOS,
    Spread,
    VariantRatio,
    VariantSummary,
    shown_ratio,
    summarise_ratios,
    summarise_variants,
)
from safesteer_edge.evaluation.bench_variants import PROMPT_KINDS
from safesteer_edge.report.document import NOTHING, Table, shown_number

_MIB: Final = 1 << 20
_RATIO_TABLES: Final[dict[str, Callable[[VariantRatio], Spread | None]]] = {
    "Speed: tokens/s over equally many tokens of each answer (below 1 is slower)": (
        lambda ratio: ratio.speed
    ),
    "Time to the first token (above 1 is slower)": lambda ratio: ratio.first_token,
    "Time to the first text; the guard holds back what it still weighs (above 1 is slower)": (
        lambda ratio: ratio.first_text
    ),
}
_SPEED_COLUMNS: Final[dict[str, Callable[[VariantSummary], str]]] = {
    "": lambda row: f"{row.variant}, {row.kind}",
    "tokens/s": lambda row: shown_number(
        row.tokens_per_second.median if row.tokens_per_second else None, 1
    ),
    "first token": lambda row: f"{1e3 * row.first_token_s.median:.1f} ms",
    "first text": lambda row: f"{1e3 * row.first_text_s.median:.1f} ms",
    "passes/token": lambda row: f"{row.passes_per_token:.3f}",
}
_GUARD_COLUMNS: Final[dict[str, Callable[[VariantSummary], str]]] = {
    "": lambda row: f"{row.variant}, {row.kind}",
    "steered": lambda row: _number(row.n_interventions),
    "refused": lambda row: _number(row.n_refused, f"/{row.n_prompts}"),
    "text as off": lambda row: f"{row.n_same_text}/{row.n_prompts}",
    "probe/call": lambda row: shown_number(row.probe_us_per_call, 0, " µs"),
    "probe/token": lambda row: shown_number(row.probe_us_per_token, 0, " µs"),
}


def bench_to_json(result: BenchResult) -> dict[str, Any]:
    """Everything, JSON-ready: the summaries first, then what they were made from."""
    settings = asdict(result.settings)
    settings["bundle"] = str(result.settings.bundle) if result.settings.bundle else None
    return {
        "ratios": [asdict(ratio) for ratio in summarise_ratios(result.answers)],
        "variants": [asdict(summary) for summary in summarise_variants(result.answers)],
        "peak_memory_bytes": dict(result.peak_memory),
        "model": asdict(result.model),
        "machine": asdict(result.machine),
        "settings": settings,
        "answers": [asdict(answer) for answer in result.answers],
    }


def bench_to_text(result: BenchResult) -> str:
    """The report for people: ratios, then medians, then the machine."""
    ratios = summarise_ratios(result.answers)
    summaries = summarise_variants(result.answers)
    tables = [
        *(_ratio_table(title, ratios, figure) for title, figure in _RATIO_TABLES.items()),
        Table.of("Medians over the repeats", "", summaries, _SPEED_COLUMNS),
        Table.of("What the guard did in one repeat, median", "", summaries, _GUARD_COLUMNS),
    ]
    blocks = [
        _title(result),
        *(table.to_text() for table in tables),
        _memory_line(result),
        _machine_lines(result),
        *_notes(summaries),
    ]
    return "\n\n".join(blocks) + "\n"


def _title(result: BenchResult) -> str:
    settings, model = result.settings, result.model
    return (
        f"What the guard {model.bundle} costs {model.name} {model.quantization}\n"
        f"{settings.n_prompts} benign and {settings.n_prompts} harmful test requests, "
        f"{settings.max_tokens} tokens at most, temperature {settings.temperature:g}, "
        f"{_counted(settings.n_repeats, 'repeat')}"
    )


def _ratio_table(
    title: str,
    ratios: Sequence[VariantRatio],
    figure: Callable[[VariantRatio], Spread | None],
) -> Table:
    """Ratios in rows, kinds of prompt in columns: median (least–greatest)."""

    cells = {(r.variant, r.other, r.kind): shown_ratio(figure(r)) for r in ratios}
    rows = (
        (
            f"{variant} / {other}",
            *(cells.get((variant, other, kind), NOTHING) for kind in PROMPT_KINDS),
        )
        for variant, other in RATIOS
    )
    return Table(title, "", ("", *PROMPT_KINDS), tuple(rows))


def _memory_line(result: BenchResult) -> str:
    parts = (
        f"{name} {size / _MIB:.0f} MiB" if size is not None else f"{name} unknown"
        for name, size in result.peak_memory.items()
    )
    off, lazy = result.peak_memory["off"], result.peak_memory["lazy"]
    more = (
        "" if off is None or lazy is None else f"; the guard's part {(lazy - off) / _MIB:.0f} MiB"
    )
    return (
        "Peak resident memory, the mapped model file included, each in a process of its own:\n  "
        + ", ".join(parts)
        + more
    )


def _machine_lines(result: BenchResult) -> str:
    machine, model = result.machine, result.model
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"machine  {machine.cpu}, {_counted(model.n_threads, 'thread')} on "
        f"{_counted(machine.n_cores, 'core')}, {machine.operating_system}\n"
        f"versions Python {machine.python}, {versions}\n"
        f"model    {model.path}\n"
        f"         {model.architecture} {model.quantization}, {model.size_bytes / _MIB:.0f} MiB, "
        f"context {model.n_ctx}\n"
        f"guard    {model.bundle}, states by {model.hidden_state_route}, probe on "
        f"{model.probe_provider}"
    )


def _notes(summaries: Sequence[VariantSummary]) -> list[str]:
    """What a reader must know to read the figures right."""
    n_other = sum(s.n_prompt_tokens_differ for s in summaries if s.variant == "llama-cpp-python")
    note = (
        f"Note: llama-cpp-python renders the chat template differently for {n_other} prompts, so "
        "it answered other prompts than we did."
    )
    return [note] if n_other else []


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _number(value: float | None, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:g}{unit}"
