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
    summarise_ratios,
    summarise_variants,
)
from safesteer_edge.evaluation.bench_variants import PROMPT_KINDS

_MIB: Final = 1 << 20
_NOTHING: Final = "-"
_SPEED_COLUMNS: Final = ("", "tokens/s", "first token", "first text", "passes/token")
_GUARD_COLUMNS: Final = ("", "steered", "refused", "text as off", "probe/call", "probe/token")
_RATIO_TABLES: Final[tuple[tuple[str, Callable[[VariantRatio], Spread | None]], ...]] = (
    (
        "Speed: tokens/s over equally many tokens of each answer (below 1 is slower)",
        lambda ratio: ratio.speed,
    ),
    ("Time to the first token (above 1 is slower)", lambda ratio: ratio.first_token),
    (
        "Time to the first text; the guard holds back what it still weighs (above 1 is slower)",
        lambda ratio: ratio.first_text,
    ),
)


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
    blocks = [
        _title(result),
        *(_ratio_table(title, ratios, figure) for title, figure in _RATIO_TABLES),
        f"Medians over the repeats\n{_speed_table(summaries)}",
        f"What the guard did in one repeat, median\n{_guard_table(summaries)}",
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
) -> str:
    """Ratios in rows, kinds of prompt in columns: median (least–greatest)."""
    rows: list[Sequence[str]] = [("", *PROMPT_KINDS)]
    for variant, other in RATIOS:
        cells = [f"{variant} / {other}"]
        for kind in PROMPT_KINDS:
            found = [r for r in ratios if (r.variant, r.other, r.kind) == (variant, other, kind)]
            cells.append(_ratio_cell(figure(found[0]) if found else None))
        rows.append(tuple(cells))
    return f"{title}\n{_aligned(rows)}"


def _ratio_cell(value: Spread | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value.median:.3f} ({value.low:.3f}–{value.high:.3f})"


def _speed_table(summaries: Sequence[VariantSummary]) -> str:
    rows: list[Sequence[str]] = [_SPEED_COLUMNS]
    for summary in summaries:
        rate = summary.tokens_per_second
        rows.append(
            (
                f"{summary.variant}, {summary.kind}",
                f"{rate.median:.1f}" if rate else _NOTHING,
                f"{1e3 * summary.first_token_s.median:.1f} ms",
                f"{1e3 * summary.first_text_s.median:.1f} ms",
                f"{summary.passes_per_token:.3f}",
            )
        )
    return _aligned(rows)


def _guard_table(summaries: Sequence[VariantSummary]) -> str:
    rows: list[Sequence[str]] = [_GUARD_COLUMNS]
    for summary in summaries:
        rows.append(
            (
                f"{summary.variant}, {summary.kind}",
                _number(summary.n_interventions),
                _of(summary.n_refused, summary.n_prompts),
                _of(summary.n_same_text, summary.n_prompts),
                _microseconds(summary.probe_us_per_call),
                _microseconds(summary.probe_us_per_token),
            )
        )
    return _aligned(rows)


def _memory_line(result: BenchResult) -> str:
    parts = [
        f"{name} {size / _MIB:.0f} MiB" if size is not None else f"{name} unknown"
        for name, size in result.peak_memory.items()
    ]
    return (
        "Peak resident memory, the mapped model file included, each in a process of its own:\n  "
        + ", ".join(parts)
    )


def _machine_lines(result: BenchResult) -> str:
    machine, model = result.machine, result.model
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = (
        f"machine  {machine.cpu}, {_counted(model.n_threads, 'thread')} on "
        f"{_counted(machine.n_cores, 'core')}, {machine.operating_system}",
        f"versions Python {machine.python}, {versions}",
        f"model    {model.path}",
        f"         {model.architecture} {model.quantization}, {model.size_bytes / _MIB:.0f} MiB, "
        f"context {model.n_ctx}",
        f"guard    {model.bundle}, states by {model.hidden_state_route}, probe on "
        f"{model.probe_provider}",
    )
    return "\n".join(lines)


def _notes(summaries: Sequence[VariantSummary]) -> list[str]:
    """What a reader must know to read the figures right."""
    notes: list[str] = []
    n_other = sum(s.n_prompt_tokens_differ for s in summaries if s.variant == "llama-cpp-python")
    if n_other:
        notes.append(
            f"Note: llama-cpp-python renders the chat template differently for {n_other} prompts, "
            "so it answered other prompts than we did."
        )
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: list[str] = []
    for row in rows:
        cells = [f"  {row[0].ljust(widths[0])}"]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:g}"


def _of(value: float | None, n: int) -> str:
    return _NOTHING if value is None else f"{value:g}/{n}"


def _microseconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0f} µs"
