"""Tables of what defences cost, how far they move the model, and how judges and probe did."""

from __future__ import annotations

from typing import Any, Final

from safesteer_edge.metrics.statistics import Share, auroc_interval
from safesteer_edge.report.page import NOTHING, Table, conditions, shown_number, shown_share

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


# -- tables of the guard on held-out requests: what it changes, and how well its probe separates ---

_REQUESTS: Final = {
    "harmful": "harmful",
    "ordinary": "ordinary",
    "borderline": "borderline, but safe",
    "harmless": "harmless twins of the harmful ones",
}
_AGAINST: Final = {
    "ordinary": "answers to ordinary requests",
    "borderline": "answers to borderline requests",
    "harmless_twins": "answers to their harmless twins",
}
_STEPS: Final = (0, 1, 2, 3, 4, 8, 16)
_CONDITIONS: Final = (
    "the package's own requests, test split, which took no part in making the guard; greedy, no "
    "system prompt"
)


def heldout_tables(report: Json) -> list[Table]:
    """Those of what the run measured."""
    heldout = report["heldout"]
    tables: list[Table] = []
    if "guard" in heldout:
        tables.append(_guard_table(heldout))
    if "probe" in heldout:
        tables.append(_probe_table(heldout["probe"]))
    return tables


def _guard_table(heldout: Json) -> Table:
    effects = {effect["label"]: effect for effect in heldout["guard"]}
    return Table(
        "What the guard does, on held-out requests",
        f"{_CONDITIONS}, {heldout['max_tokens']} tokens; answered: refused neither by the guard "
        "nor by the model, judge: rules; whether an answer was any good is not judged; 95 % "
        "intervals (Wilson)",
        ("requests", "n", "answered, guard off", "answered, guarded", "byte-identical to off"),
        tuple(
            (
                name,
                str(effects[label]["identical"]["n"]),
                *(
                    _count(effects[label][figure])
                    for figure in ("off_answered", "guarded_answered", "identical")
                ),
            )
            for label, name in _REQUESTS.items()
            if label in effects and effects[label]["identical"]["n"]
        ),
    )


def _probe_table(probe: Json) -> Table:
    steps = {step["step"]: step for step in probe["steps"]}
    known = dict(zip(steps, probe["known_openings"]["steps"], strict=True))
    rows = [
        (
            words,
            *(shown_number(steps[step][f"against_{name}"], 3) for step in _STEPS),
            _risk(probe, name),
            _count(probe.get(f"found_at_1_percent_{name}")),
        )
        for name, words in _AGAINST.items()
    ]
    refusing = "a refusing answer to the same request"
    candidates = {
        f"{refusing}, in words that calibration never uses": {
            step: row["candidate"] for step, row in steps.items()
        },
        f"{refusing}, in words that it uses": known,
    }
    for words, by_step in candidates.items():
        cells = (shown_number(by_step[step], 3) for step in _STEPS)
        rows.append((words, *cells, NOTHING, NOTHING))
    return Table(
        "How well the probe separates, on held-out requests",
        f"{_CONDITIONS}; AUROC of complying answers to {probe['n_harmful']} harmful requests, "
        f"states of the decode path, against {probe['n_ordinary']} ordinary, "
        f"{probe['n_borderline']} borderline, {probe['n_harmless']} harmless twin requests, and "
        f"{probe['n_candidate_pairs']} pairs of answers that were made to begin so; risk: prompt "
        "and 16 tokens, as the guard adds them up; found: harmful answers by their risk, at 1 % "
        "false alarms; 95 % intervals in brackets",
        (
            "AUROC of complying answers to harmful requests, against",
            *("prompt", "step 1", "2", "3", "4", "8", "16", "risk"),
            "found at 1 % false alarms",
        ),
        tuple(rows),
    )


def _risk(probe: Json, name: str) -> str:
    value = probe[f"mean_against_{name}"]
    if value is None:
        return NOTHING
    low, high = probe[f"mean_against_{name}_95"]
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _count(value: Json | None) -> str:
    """E.g. `24 (18.5 %, 13–26)`: n stands elsewhere in the table."""
    if value is None or not value["n"]:
        return NOTHING
    share = Share(value["count"], value["n"])
    low, high = (f"{100 * bound:.0f}" for bound in share.interval)
    return f"{share.count} ({100 * share.value:.1f} %, {low}–{high})"
