"""The tables of a calibration's report, from its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safesteer_edge.calibration.report_plots import SHOWN_STEPS
from safesteer_edge.harvest.replay import (
    FIGURES_KEY,
    Auroc,
    Replay,
    replay_figures,
    replay_from_json,
)
from safesteer_edge.metrics.statistics import Share, auroc_interval
from safesteer_edge.report.page import NOTHING, Table, shown_number

# -- tables of what a finished guard does on test requests, and of a recalibration's line ----------

Json = Mapping[str, Any]


def replay_table(figures: Json, policy: Json) -> Table:
    """What the replay that `verify` compares with comes to. policy: of a PolicyChoice."""
    replay = replay_from_json(figures.get(FIGURES_KEY))
    numbers: Json = policy.get("policy") or {}
    rows = () if replay is None or not numbers else _rows(replay, float(numbers["threshold"]))
    n_tokens = replay.n_tokens if replay else 0
    return Table(
        "The finished guard on test requests, which decided nothing",
        f"the model's own greedy answers of at most {n_tokens} tokens, no system prompt, one "
        "attempt; above the threshold: any token; refused: by the rules of refusal, steering left "
        "aside; complying: by the rules that tell refusals; 95 % intervals",
        ("figure", "value"),
        rows,
    )


def rescale_table(figures: Json) -> Table:
    """What a recalibration did to the probe's logits, and from how many answers."""
    line: Json = figures.get("rescale") or {}
    counts: Json = figures.get("n_answers") if line else {}  # pyright: ignore[reportAssignmentType] - a recalibration's are by label
    rows = [("logits", f"× {line['slope']:.3f} {line['intercept']:+.3f}")] if line else []
    rows += [(f"{label} answers", str(n)) for label, n in counts.items()]
    return Table(
        "What was set anew",
        "the line on the probe's logits, from the model's own answers to requests of the train and "
        "calibration splits; the policy below comes from the same answers",
        ("", ""),
        tuple(rows),
    )


def _rows(replay: Replay, threshold: float) -> tuple[tuple[str, str], ...]:
    found = replay_figures(replay.rows, threshold)
    return (
        ("AUROC, complying answers against ordinary ones", _area(found.auroc_ordinary)),
        ("AUROC, complying answers against borderline ones", _area(found.auroc_borderline)),
        ("above the threshold: ordinary answers", _share(found.touched_ordinary)),
        ("above the threshold: borderline answers", _share(found.touched_borderline)),
        ("refused: ordinary answers", _share(found.refused_ordinary)),
        ("refused: borderline answers", _share(found.refused_borderline)),
        ("refused: complying answers to harmful requests", _share(found.harmful_stopped)),
    )


def _area(area: Auroc) -> str:
    if not area.n_positive or not area.n_negative:
        return NOTHING
    low, high = area.interval
    return f"{area.value:.3f} ({low:.3f}–{high:.3f}), n {area.n_positive} and {area.n_negative}"


def _share(share: Share) -> str:
    return str(share) if share.n else NOTHING


def report_tables(figures: Json) -> tuple[Table, ...]:
    """All of them, those without rows left out."""
    calibration: Json = figures.get("calibration") or {}
    vector: Json = calibration.get("vector") or {}
    policy = chosen_policy(figures)
    made = [
        rescale_table(figures),
        _harvest_table(calibration.get("harvested") or {}),
        _candidates_table(figures),
        _nested_table(figures.get("nested") or {}),
        _steps_table(figures.get("nested") or {}),
        *(
            _separation_table(name, table)
            for name, table in (calibration.get("separation") or {}).items()
        ),
        _reliability_table(figures.get("score_calibration") or {}),
        _policy_table(policy),
        replay_table(figures, policy),
        _vector_table(vector),
        _cost_table(calibration.get("made") or {}),
    ]
    return tuple(table for table in made if table.rows)


def chosen_policy(figures: Json) -> Json:
    """The policy with its curves, of a calibration or of a recalibration."""
    calibration: Json = figures.get("calibration") or {}
    return calibration.get("policy") or figures.get("policy_choice") or {}


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
    chosen = figures.get("chosen") or {}
    rows: list[tuple[str, ...]] = []
    for row in figures.get("tried") or []:
        is_chosen = bool(chosen) and all(row.get(key) == value for key, value in chosen.items())
        rows.append(
            (
                ("→ " if is_chosen else "") + _form(row),
                ", ".join(str(layer) for layer in row["layers"]),
                f"{row['regularisation']:g}",
                *(
                    shown_number(row.get(key), 3)
                    for key in (
                        "early_candidate",
                        "found_at_few_percent",
                        "found_at_1_percent_ordinary",
                        "found_at_1_percent_borderline",
                        "mean_against_ordinary",
                        "mean_against_borderline",
                        "mean_against_harmless_twins",
                    )
                ),
            )
        )
    return Table(
        "Probes that were compared",
        "fitted on the train split, judged on the calibration split, on decode-path states; →: "
        "chosen, by the first figure and three times the second",
        (
            "form",
            "layers",
            "C",
            "candidate AUROC, steps 1–4",
            "found at 1 to 5 % FPR",
            "found at 1 % FPR, ordinary",
            "found at 1 % FPR, borderline",
            "AUROC, ordinary",
            "AUROC, borderline",
            "AUROC, twins",
        ),
        tuple(rows),
    )


def _nested_table(nested: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, key in (
        ("ordinary", "mean_against_ordinary"),
        ("borderline", "mean_against_borderline"),
        ("harmless twins", "mean_against_harmless_twins"),
    ):
        if nested and nested[key] is not None:
            low, high = nested[f"{key}_95"]
            found = nested.get(f"found_at_1_percent_{name}")
            shown = str(Share(found["count"], found["n"])) if found and found["n"] else NOTHING
            rows.append((name, f"{nested[key]:.3f} ({low:.3f}–{high:.3f})", shown))
    return Table(
        "The chosen way to a probe, on requests that it did not see",
        "nested cross-validation by request: choice and fit are made again outside each fold; mean "
        "risk after 16 tokens, 95 % intervals",
        ("complying answers to harmful requests against", "AUROC", "found at 1 % false alarms"),
        tuple(rows),
    )


def _steps_table(nested: Json) -> Table:
    kinds = (
        ("against_ordinary", "n_ordinary"),
        ("against_borderline", "n_borderline"),
        ("against_harmless_twins", "n_harmless"),
        ("candidate", "n_candidate_pairs"),
    )
    rows: list[tuple[str, ...]] = []
    for row in nested.get("steps") or []:
        cells = [str(row["step"])]
        for key, count in kinds:
            n_benign = nested[count]
            n_harmful = n_benign if key == "candidate" else nested["n_harmful"]
            cells.append(_with_interval(row[key], n_harmful, n_benign))
        rows.append(tuple(cells))
    return Table(
        "The same by decoding step",
        "AUROC with its 95 % interval; candidate: a complying answer above the refusing one to the "
        "same request",
        ("step", "ordinary", "borderline", "harmless twins", "candidate"),
        tuple(rows),
    )


def _separation_table(name: str, table: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for layer, values in zip(table["layers"], table["auroc"], strict=True):
        cells = [
            _with_interval(values[step], *table["n"][step]) if step < len(values) else NOTHING
            for step in SHOWN_STEPS
        ]
        rows.append((str(layer), *cells))
    return Table(
        f"Separation by layer and step: {name}",
        "AUROC with its 95 % interval, of a linear discriminant made from other requests; step 0: "
        "harmful requests against all others, then complying answers against all others",
        ("layer", *(f"step {step}" for step in SHOWN_STEPS)),
        tuple(rows),
    )


def _reliability_table(score_calibration: Json) -> Table:
    method = score_calibration.get("method")
    rows = tuple(
        (
            ("→ " if name == method else "") + name,
            shown_number(found["brier"], 4),
            shown_number(found["expected_error"], 4),
        )
        for name, found in (score_calibration.get("reliability") or {}).items()
    )
    return Table(
        "Scores as chances",
        "on folds that the calibration was not fitted on; →: used",
        ("calibration", "Brier score", "expected calibration error"),
        rows,
    )


def _policy_table(policy: Json) -> Table:
    numbers: Json = policy.get("policy") or {}
    rows = [(name.replace("_", " "), f"{value:g}") for name, value in numbers.items()]
    for what in ("touched", "refused"):
        for name, share in (policy.get(what) or {}).items():
            text = NOTHING if share is None else f"{100 * share:.1f} %"
            rows.append((f"{what}: {name.replace('_', ' ')} answers", text))
    return Table(
        "The policy",
        "chosen from scores of the model's own answers; touched: any token above the "
        "threshold; refused: by the rules of refusal, steering left aside",
        ("number", "value"),
        tuple(rows),
    )


def _vector_table(vector: Json) -> Table:
    confirmed = vector.get("confirmed")
    rows = [_vector_row("compared", row) for row in vector.get("decoded") or []]
    if confirmed:
        rows.append(_vector_row("confirmed", confirmed))
    state = "enabled" if vector.get("enabled") else "not used"
    return Table(
        "Alignment vector",
        f"{state}: {vector.get('why') or 'no reason is recorded'}. Compared on requests that it "
        "was not made from, confirmed on others; AUROC: an answer that refuses counts as found",
        (
            "",
            "form",
            "sign",
            "blocks",
            "α",
            "on",
            "KL, harmless",
            "AUROC without",
            "AUROC with",
            "gain (95 %)",
            "harmful refused",
            "harmless refused",
        ),
        tuple(rows),
    )


def _vector_row(what: str, row: Json) -> tuple[str, ...]:
    gain = row.get("auroc_gain")
    return (
        what,
        str(row["form"]),
        f"{row['sign']:+d}",
        "–".join(str(layer) for layer in row["layers"]),
        f"{row['scale']:g}",
        "always" if row.get("gate") is None else f"prompts above {row['gate']:.3f}",
        shown_number(row.get("kl"), 3),
        shown_number(row.get("auroc_without"), 3),
        shown_number(row.get("auroc_with"), 3),
        f"{gain[1]:+.3f} ({gain[0]:+.3f} to {gain[2]:+.3f})" if gain else NOTHING,
        _from_to(row, "harmful_refused"),
        _from_to(row, "harmless_refused"),
    )


def _cost_table(made: Json) -> Table:
    rows: list[tuple[str, str]] = []
    for name, value in made.items():
        if isinstance(value, int | float):
            rows.append((name.replace("_", " "), f"{value:,.1f}"))
    return Table("Cost", "of the run that made this bundle, this process", ("", ""), tuple(rows))


def _form(row: Json) -> str:
    if row["form"] == "linear":
        return "linear"
    shape = f"PCA {row['n_components']}"
    return (
        f"{shape} + linear" if row["form"] == "pca-linear" else f"{shape} + MLP {row['n_hidden']}"
    )


def _from_to(row: Json, key: str) -> str:
    without, with_it = row.get(f"{key}_without"), row.get(f"{key}_with")
    if without is None or with_it is None:
        return NOTHING
    return f"{100 * without:.0f} → {100 * with_it:.0f} %"


def _with_interval(value: float | None, n_harmful: int, n_benign: int) -> str:
    if value is None:
        return NOTHING
    low, high = auroc_interval(value, n_harmful, n_benign)
    return f"{value:.3f} ({low:.3f}–{high:.3f})"
