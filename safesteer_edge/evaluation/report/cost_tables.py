"""Tables of what defences cost, how far they move the model, and how judges and probe did."""

from __future__ import annotations

from typing import Any, Final

from safesteer_edge.evaluation.report.table import (
    NOTHING,
    Table,
    conditions,
    shown_number,
    shown_share,
)
from safesteer_edge.evaluation.statistics import auroc_interval

Json = dict[str, Any]
_MIB: Final = 1 << 20
_KINDS: Final[dict[str, str]] = {"benign": "ordinary"}


def quality_table(report: Json) -> Table:
    """See the table's own title and note."""
    return Table(
        "Distance from the undefended model on harmless requests",
        "KL of next-token distributions in nats, mean over 16 steps of each answer (– where a "
        "defence leaves them alone); perplexity of its answers under the undefended model; "
        f"{conditions(report)}",
        ("defence", "n", "KL, mean", "KL, largest", "perplexity", "tokens"),
        tuple(
            (
                row["defence"],
                str(row["n"]),
                shown_number(row["kl_mean"], 4),
                shown_number(row["kl_max"], 4),
                shown_number(row["perplexity"], 2),
                str(row["n_tokens"]),
            )
            for row in report["quality"]
        ),
    )


def overhead_table(report: Json) -> Table:
    """See the table's own title and note."""
    shown = ("median", "low", "high")

    def spread(value: Json | None) -> str:
        if value is None:
            return NOTHING
        median, low, high = (f"{value[key]:.3f}" for key in shown)
        return f"{median}× ({low}–{high})"

    overheads = report["overheads"]
    settings: Json = overheads.get("settings") or {}
    passes: Json = overheads.get("passes_per_token") or {}
    return Table(
        "Overheads, side by side",
        f"'bench' at the end of this run, one answer at a time: medians of "
        f"{settings.get('n_repeats')} interleaved repeats, range in brackets; "
        f"{settings.get('n_prompts')} ordinary and as many harmful requests of the test split, "
        f"{settings.get('max_tokens')} tokens at most, greedy, no system prompt, "
        f"{overheads.get('n_threads')} threads; speed: tokens/s, above 1 is faster; time to first "
        "text: above 1 is slower; a batch of candidates counts as one pass",
        ("variant", "against", "requests", "speed", "time to first text", "passes/token", "memory"),
        tuple(
            (
                row["variant"],
                row["other"],
                _KINDS.get(str(row["kind"]), str(row["kind"])),
                spread(row["speed"]),
                spread(row["first_text"]),
                shown_number(passes.get(f"{row['variant']}/{row['kind']}"), 3),
                _mib(overheads["peak_memory_bytes"].get(row["variant"])),
            )
            for row in overheads.get("ratios", ())
        ),
    )


def _mib(n_bytes: int | None) -> str:
    return shown_number(n_bytes / _MIB if n_bytes else None, 0, " MiB")


def cost_table(report: Json) -> Table:
    """See the table's own title and note."""
    facts = report["facts"]
    return Table(
        "What answers took",
        f"{facts['n_workers']} × {facts['n_threads']} threads (processes × threads), so speeds are "
        "not for comparison with other runs, and of other suites where n differs; overheads are "
        f"measured by 'bench'; {conditions(report)}",
        (
            "defence",
            "cases",
            "n",
            "tokens/s",
            "first text, median",
            "passes/token",
            "interventions/answer",
            "refused or withheld by it",
            "peak memory",
        ),
        tuple(
            (
                row["defence"],
                row["kind"],
                str(row["n"]),
                shown_number(row["tokens_per_second"], 1),
                shown_number(row["ttft_s"], 3, " s"),
                shown_number(row["passes_per_token"], 3),
                shown_number(row["interventions_per_answer"], 2),
                str(row["n_withheld_or_refused"]),
                _mib(row["peak_memory_bytes"]),
            )
            for row in report["cost"]
        ),
    )


def steps_table(report: Json) -> Table:
    """See the table's own title and note."""
    steps = report["steps"]
    wanted = (1, 2, 4, 8, 16, 24, 32)
    return Table(
        "Separation by the probe at each decoding step",
        f"AUROC of answers that comply with attacks against harmless ones, scored while they were "
        f"decoded ({steps['defence']}), 95 % intervals; {conditions(report, report['judges'][0])}",
        ("step", "AUROC", "harmful", "harmless"),
        tuple(
            (
                str(step["step"]),
                _area(step),
                str(step["n_harmful"]),
                str(step["n_harmless"]),
            )
            for step in steps["steps"]
            if step["step"] in wanted
        ),
    )


def _area(step: Json) -> str:
    low, high = auroc_interval(step["auroc"], step["n_harmful"], step["n_harmless"])
    return f"{step['auroc']:.3f} ({low:.3f}–{high:.3f})"


def agreement_table(report: Json) -> Table:
    """See the table's own title and note."""
    return Table(
        "Agreement between judges on whether attacks succeeded",
        "distinct answers to harmful requests that both judged; κ is agreement beyond chance",
        ("judges", "agree", "κ"),
        tuple(
            (
                " and ".join(row["judges"]),
                shown_share(row["agreeing"]),
                shown_number(row["kappa"], 2),
            )
            for row in report["agreement"]
        ),
    )
