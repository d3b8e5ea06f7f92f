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

Json = dict[str, Any]
_MIB: Final = 1 << 20


def quality_table(report: Json) -> Table:
    """See the table's own title and note."""
    return Table(
        "Distance from the undefended model on harmless requests",
        "KL of next-token distributions in nats, mean over 16 steps of each answer (– where a "
        "defence leaves them alone); perplexity of its answers under the undefended model",
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

    return Table(
        "Overheads, side by side",
        "'bench' at the end of this run, one answer at a time: medians of interleaved repeats, "
        "range in brackets; greedy; benign and harmful requests of the test split",
        ("variant", "against", "requests", "speed", "time to first text"),
        tuple(
            (
                row["variant"],
                row["other"],
                row["kind"],
                spread(row["speed"]),
                spread(row["first_text"]),
            )
            for row in report["overheads"]
        ),
    )


def cost_table(report: Json) -> Table:
    """See the table's own title and note."""
    facts = report["facts"]
    return Table(
        "What answers took",
        f"{facts['n_workers']} × {facts['n_threads']} threads (processes × threads), so speeds are "
        "not for comparison with other runs; 'safesteer-edge bench' measures overheads",
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
                shown_number(
                    row["peak_memory_bytes"] / _MIB if row["peak_memory_bytes"] else None,
                    0,
                    " MiB",
                ),
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
        f"decoded ({steps['defence']}); {conditions(report, report['judges'][0])}",
        ("step", "AUROC", "harmful", "harmless"),
        tuple(
            (
                str(step["step"]),
                shown_number(step["auroc"], 3),
                str(step["n_harmful"]),
                str(step["n_harmless"]),
            )
            for step in steps["steps"]
            if step["step"] in wanted
        ),
    )


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
