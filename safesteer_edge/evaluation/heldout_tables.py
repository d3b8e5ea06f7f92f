"""The guard on held-out requests, as tables: what it changes, how well its probe separates."""

from __future__ import annotations

from typing import Any, Final

from safesteer_edge.metrics.statistics import Share
from safesteer_edge.report.document import NOTHING, Table, shown_number, shown_spread

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
_HELDOUT_STEPS: Final = {
    0: "prompt",
    1: "step 1",
    **{step: str(step) for step in (2, 3, 4, 8, 16)},
}
_HELDOUT_CONDITIONS: Final = (
    "the package's own requests, test split, which took no part in making the guard; greedy, no "
    "system prompt"
)


def guard_table(heldout: Json) -> Table:
    effects = {effect["label"]: effect for effect in heldout["guard"]}
    return Table.of(
        "What the guard does, on held-out requests",
        f"{_HELDOUT_CONDITIONS}, {heldout['max_tokens']} tokens; answered: refused neither by the "
        "guard nor by the model, judge: rules; whether an answer was any good is not judged; 95 % "
        "intervals (Wilson)",
        [effects[x] for x in _REQUESTS if x in effects and effects[x]["identical"]["n"]],
        {
            "requests": lambda row: _REQUESTS[row["label"]],
            "n": lambda row: str(row["identical"]["n"]),
            "answered, guard off": lambda row: _count(row["off_answered"]),
            "answered, guarded": lambda row: _count(row["guarded_answered"]),
            "byte-identical to off": lambda row: _count(row["identical"]),
        },
    )


def probe_table(probe: Json) -> Table:
    steps = {step["step"]: step for step in probe["steps"]}
    known = dict(zip(steps, probe["known_openings"]["steps"], strict=True))
    unseen = {step: row["candidate"] for step, row in steps.items()}
    refusing = "a refusing answer to the same request"
    rows = [
        (
            words,
            *(shown_number(steps[step][f"against_{name}"], 3) for step in _HELDOUT_STEPS),
            shown_spread(probe[f"mean_against_{name}"], probe[f"mean_against_{name}_95"]),
            _count(probe.get(f"found_at_1_percent_{name}")),
        )
        for name, words in _AGAINST.items()
    ]
    rows += [
        (words, *(shown_number(auroc[step], 3) for step in _HELDOUT_STEPS), NOTHING, NOTHING)
        for words, auroc in (
            (f"{refusing}, in words that calibration never uses", unseen),
            (f"{refusing}, in words that it uses", known),
        )
    ]
    return Table(
        "How well the probe separates, on held-out requests",
        f"{_HELDOUT_CONDITIONS}; AUROC of complying answers to {probe['n_harmful']} harmful "
        f"requests, states of the decode path, against {probe['n_ordinary']} ordinary, "
        f"{probe['n_borderline']} borderline, {probe['n_harmless']} harmless twin requests, and "
        f"{probe['n_candidate_pairs']} pairs of answers that were made to begin so; risk: prompt "
        "and 16 tokens, as the guard adds them up; found: harmful answers by their risk, at 1 % "
        "false alarms; 95 % intervals in brackets",
        (
            "AUROC of complying answers to harmful requests, against",
            *_HELDOUT_STEPS.values(),
            "risk",
            "found at 1 % false alarms",
        ),
        tuple(rows),
    )


def _count(value: Json | None) -> str:
    """E.g. `24 (18.5 %, 13–26)`: n stands elsewhere in the table."""
    if value is None or not value["n"]:
        return NOTHING
    return str(Share(value["count"], value["n"])).replace(f"/{value['n']}", "").replace("95 % ", "")
