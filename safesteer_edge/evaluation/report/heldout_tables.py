"""Tables of the guard on held-out requests: what it changes, and how well its probe separates."""

from __future__ import annotations

from typing import Any, Final

from safesteer_edge.evaluation.report.table import NOTHING, Table, shown_number
from safesteer_edge.evaluation.statistics import Share

Json = dict[str, Any]
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
