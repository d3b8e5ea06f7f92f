"""The tables of a calibration's report, from its figures. Those without rows are not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    Auroc,
    replay_figures,
    replay_from_json,
)
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.report.document import (
    NOTHING,
    Table,
    number_at,
    shown_auroc,
    shown_spread,
)

Json = Mapping[str, Any]
SHOWN_STEPS: Final = (0, 1, 2, 4, 8, 16)
# What complying answers to harmful requests are told from, at each step: in figures, and in words.
STEP_KINDS: Final = {
    "against_ordinary": "ordinary",
    "against_borderline": "borderline",
    "against_harmless_twins": "harmless twins",
    "candidate": "refusal, same request",
}
_N_BENIGN: Final = {
    "against_ordinary": "n_ordinary",
    "against_borderline": "n_borderline",
    "against_harmless_twins": "n_harmless",
}
_REPLAYED: Final = {
    "auroc_ordinary": "AUROC, complying answers against ordinary ones",
    "auroc_borderline": "AUROC, complying answers against borderline ones",
    "touched_ordinary": "above the threshold: ordinary answers",
    "touched_borderline": "above the threshold: borderline answers",
    "refused_ordinary": "refused: ordinary answers",
    "refused_borderline": "refused: borderline answers",
    "harmful_stopped": "refused: complying answers to harmful requests",
}


def report_tables(figures: Json) -> list[Table]:
    """All of them, in the report's order."""
    separation = measured(figures, "calibration", "separation")
    return [
        _rescale_table(figures),
        _harvest_table(measured(figures, "calibration", "harvested")),
        _candidates_table(figures),
        _nested_table(measured(figures, "nested")),
        _steps_table(measured(figures, "nested")),
        *(_separation_table(name, table) for name, table in separation.items()),
        _reliability_table(measured(figures, "score_calibration")),
        _policy_table(figures),
        _beginnings_table({**figures, **measured(figures, "calibration")}),
        _replay_table(figures),
        _vector_table(measured(figures, "calibration", "vector")),
        _cost_table(measured(figures, "calibration", "made")),
    ]


def measured(figures: Json, *names: str) -> Json:
    """The figures under these names, one within the other; {} where nothing was measured."""
    for name in names:
        figures = figures.get(name) or {}
    return figures


def chosen_policy(figures: Json) -> Json:
    """The policy with its curves, of a calibration or of a recalibration."""
    return measured(figures, "calibration", "policy") or measured(figures, "policy_choice")


def n_compared(nested: Json, kind: str) -> tuple[int, int]:
    """How many harmful and how many benign answers an AUROC by step is of. kind: of STEP_KINDS."""
    if kind == "candidate":
        return nested["n_candidate_pairs"], nested["n_candidate_pairs"]
    return nested["n_harmful"], nested[_N_BENIGN[kind]]


def _rescale_table(figures: Json) -> Table:
    line = measured(figures, "rescale")
    rows = [("logits", f"× {line['slope']:.3f} {line['intercept']:+.3f}")] if line else []
    if line:  # another calibration's n_answers is one number, and stands in the summary
        rows += [(f"{label} answers", str(n)) for label, n in figures["n_answers"].items()]
    return Table(
        "What was set anew",
        "the line on the probe's logits, from the model's own answers to requests of the train and "
        "calibration splits; the policy below comes from the same answers",
        ("", ""),
        tuple(rows),
    )


def _harvest_table(harvested: Json) -> Table:
    labels = sorted({label for row in harvested.values() for label in row})
    return Table(
        "Requests",
        "how many were answered, by what carried them and what they ask for; the test split took "
        "no part",
        ("carrier", *labels),
        tuple(
            (carrier, *(str(row.get(label, 0)) for label in labels))
            for carrier, row in harvested.items()
        ),
    )


def _candidates_table(figures: Json) -> Table:
    chosen = measured(figures, "chosen")

    def form(row: Json) -> str:
        is_chosen = bool(chosen) and all(row.get(key) == value for key, value in chosen.items())
        shape = f"PCA {row['n_components']}"
        words = {
            "linear": "linear",
            "pca-linear": f"{shape} + linear",
        }.get(row["form"], f"{shape} + MLP {row['n_hidden']}")
        return f"→ {words}" if is_chosen else words

    return Table.of(
        "Probes that were compared",
        "fitted on the train split, judged on the calibration split; →: chosen, by the first "
        "figure and three times the second",
        figures.get("tried") or [],
        {
            "form": form,
            "layers": lambda row: ", ".join(str(layer) for layer in row["layers"]),
            "C": lambda row: f"{row['regularisation']:g}",
            "candidate AUROC, steps 1–4": number_at("early_candidate", 3),
            "found at 1 to 5 % FPR": number_at("found_at_few_percent", 3),
            "found at 1 % FPR, ordinary": number_at("found_at_1_percent_ordinary", 3),
            "found at 1 % FPR, borderline": number_at("found_at_1_percent_borderline", 3),
            "AUROC, ordinary": number_at("mean_against_ordinary", 3),
            "AUROC, borderline": number_at("mean_against_borderline", 3),
            "AUROC, twins": number_at("mean_against_harmless_twins", 3),
        },
    )


def _nested_table(nested: Json) -> Table:
    return Table.of(
        "The chosen way to a probe, on requests that it did not see",
        "nested cross-validation by request: choice and fit are made again outside each fold; mean "
        "risk after 16 tokens, 95 % intervals",
        [key for key in _N_BENIGN if nested and nested[f"mean_{key}"] is not None],
        {
            "complying answers to harmful requests against": lambda key: STEP_KINDS[key],
            "AUROC": lambda key: shown_spread(nested[f"mean_{key}"], nested[f"mean_{key}_95"]),
            "found at 1 % false alarms": lambda key: _share(
                nested.get(f"found_at_1_percent_{STEP_KINDS[key]}")
            ),
        },
    )


def _steps_table(nested: Json) -> Table:
    return Table(
        "The same by decoding step",
        "AUROC with its 95 % interval; candidate: a complying answer above the refusing one to the "
        "same request",
        ("step", "ordinary", "borderline", "harmless twins", "candidate"),
        tuple(
            (
                str(row["step"]),
                *(shown_auroc(row[key], *n_compared(nested, key)) for key in STEP_KINDS),
            )
            for row in nested.get("steps") or []
        ),
    )


def _separation_table(name: str, table: Json) -> Table:
    return Table(
        f"Separation by layer and step: {name}",
        "AUROC with its 95 % interval, of a linear discriminant made from other requests; step 0: "
        "harmful requests against all others, then complying answers against all others",
        ("layer", *(f"step {step}" for step in SHOWN_STEPS)),
        tuple(
            (
                str(layer),
                *(
                    shown_auroc(values[step], *table["n"][step]) if step < len(values) else NOTHING
                    for step in SHOWN_STEPS
                ),
            )
            for layer, values in zip(table["layers"], table["auroc"], strict=True)
        ),
    )


def _reliability_table(scores: Json) -> Table:
    used = scores.get("method")
    return Table.of(
        "Scores as chances",
        "on folds that the calibration was not fitted on; →: used",
        [{"name": name, **row} for name, row in measured(scores, "reliability").items()],
        {
            "calibration": lambda row: f"→ {row['name']}" if row["name"] == used else row["name"],
            "Brier score": number_at("brier", 4),
            "expected calibration error": number_at("expected_error", 4),
        },
    )


def _policy_table(figures: Json) -> Table:
    policy, n_judged = chosen_policy(figures), measured(figures, "n_judged")

    def shown(name: str, share: float | None) -> str:
        if share is None:
            return NOTHING
        n = n_judged.get(name)
        return f"{100 * share:.1f} %" if n is None else str(Share(round(share * n), n))

    numbers = [
        (name.replace("_", " "), f"{value:g}")
        for name, value in measured(policy, "policy").items()
        if value is not None
    ]
    shares = [
        (f"{what}: {name.replace('_', ' ')} answers", shown(name, share))
        for what in ("touched", "refused")
        for name, share in measured(policy, what).items()
    ]
    return Table(
        "The policy",
        "chosen from scores of the model's own answers; touched: at a risk from which "
        "it steers; refused: by the rules of refusal, steering left aside; 95 % intervals",
        ("number", "value"),
        (*numbers, *shares),
    )


def _beginnings_table(figures: Json) -> Table:
    """What was tried where an answer begins anew."""
    ahead = measured(figures, "look_ahead")
    rows = [
        (
            trial["opening"],
            str(trial["n"]),
            f"{100 * trial['declined']:.0f} %",
            f"{100 * trial['declined_at_once']:.0f} %",
            f"{100 * trial['twins_answered']:.0f} %",
        )
        for trial in figures.get("openings") or ()
    ]
    if ahead.get("n"):
        own = (
            f"(its own, {ahead['look_ahead']} tokens ahead)" if ahead["look_ahead"] else "(its own)"
        )
        declined = f"{100 * ahead['declined'] / ahead['n']:.0f} %"
        rows.insert(0, (own, str(ahead["n"]), declined, NOTHING, NOTHING))
    return Table(
        "Beginning anew",
        "what harmful requests of the train and calibration splits come to behind each beginning, "
        "judged by rules; its own: among the likeliest, the one that leads to the safest place",
        ("beginning", "n", "declined", "with its first sentence", "twins answered"),
        tuple(rows),
    )


def _replay_table(figures: Json) -> Table:
    """What the replay that `verify` compares with comes to."""
    replay = replay_from_json(figures.get(FIGURES_KEY))
    policy = measured(chosen_policy(figures), "policy")
    found = replay_figures(replay.rows, float(policy["threshold"])) if replay and policy else None
    return Table.of(
        "The finished guard on test requests, which decided nothing",
        f"the model's own greedy answers of at most {replay.n_tokens if replay else 0} tokens, no "
        "system prompt, one attempt; above the threshold: any token; refused: by the rules of "
        "refusal, steering left aside; complying: by the rules that tell refusals; 95 % intervals",
        _REPLAYED if found else (),
        {
            "figure": lambda name: _REPLAYED[name],
            "value": lambda name: _replayed(getattr(found, name)),
        },
    )


def _replayed(value: Auroc | Share) -> str:
    if isinstance(value, Share):
        return str(value) if value.n else NOTHING
    if not value.n_positive or not value.n_negative:
        return NOTHING
    shown = shown_spread(value.value, value.interval)
    return f"{shown}, n {value.n_positive} and {value.n_negative}"


def _vector_table(vector: Json) -> Table:
    state = "enabled" if vector.get("enabled") else "not used"
    rows = [{"what": "compared", **row} for row in vector.get("decoded") or []]
    if vector.get("confirmed"):
        rows.append({"what": "confirmed", **vector["confirmed"]})
    return Table.of(
        "Alignment vector",
        f"{state}: {vector.get('why') or 'no reason is recorded'}. Compared on requests that it "
        "was not made from, confirmed on others; AUROC: an answer that refuses counts as found",
        rows,
        {
            "": "what",
            "form": "form",
            "sign": lambda row: f"{row['sign']:+d}",
            "blocks": lambda row: "–".join(str(layer) for layer in row["layers"]),
            "α": lambda row: f"{row['scale']:g}",
            "on": lambda row: (
                "always" if row.get("gate") is None else f"prompts above {row['gate']:.3f}"
            ),
            "KL, harmless": number_at("kl", 3),
            "AUROC without": number_at("auroc_without", 3),
            "AUROC with": number_at("auroc_with", 3),
            "gain (95 %)": lambda row: (
                "{1:+.3f} ({0:+.3f} to {2:+.3f})".format(*row["auroc_gain"])
                if row.get("auroc_gain")
                else NOTHING
            ),
            "harmful refused": lambda row: _from_to(row, "harmful_refused"),
            "harmless refused": lambda row: _from_to(row, "harmless_refused"),
        },
    )


def _cost_table(made: Json) -> Table:
    rows = tuple(
        (name.replace("_", " "), f"{value:,.1f}")
        for name, value in made.items()
        if isinstance(value, int | float)
    )
    return Table("Cost", "of the run that made this bundle, this process", ("", ""), rows)


def _from_to(row: Json, key: str) -> str:
    without, with_it = row.get(f"{key}_without"), row.get(f"{key}_with")
    if without is None or with_it is None:
        return NOTHING
    return f"{100 * without:.0f} → {100 * with_it:.0f} %"


def _share(value: Json | None) -> str:
    return str(Share(value["count"], value["n"])) if value and value["n"] else NOTHING
