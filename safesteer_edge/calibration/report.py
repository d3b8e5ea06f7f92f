"""A calibration's report: one HTML page without script, and the same figures as JSON.

Made from the bundle's own record alone. It holds no request's text, harmful or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from safesteer_edge.bundle.writer import BundleParts
from safesteer_edge.calibration.report_tables import (
    SHOWN_STEPS,
    STEP_KINDS,
    chosen_policy,
    measured,
    n_compared,
    report_tables,
)
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.metrics.statistics import auroc_interval
from safesteer_edge.report.document import (
    Plot,
    PlotPoint,
    Range,
    Report,
    Series,
    Texts,
    json_text,
    shown_spread,
)

HTML_NAME: Final = "report.html"
JSON_NAME: Final = "report.json"
Json = Mapping[str, Any]
_WITH_VECTOR: Final = "media with vector"
_AUROC_RANGE: Final = (0.5, 1.0)  # what is worse than a coin lies on the axis
_TOUCHED: Final = {
    "harmful": "harmful requests",
    "harmless_twins": "their harmless twins",
    "borderline": "borderline requests",
}


def bundle_report(parts: BundleParts) -> dict[str, str]:
    """The bundle's pages for people, by file name; made from its parts before they are written."""
    facts = {
        "name": parts.name,
        "created_by": parts.created_by,
        "model": asdict(parts.model),
        "probe_layers": parts.probe_layers,
        "hidden_state_route": parts.route_hint,
    }
    return report_files(facts, parts.figures)


def report_files(facts: Json, figures: Json) -> dict[str, str]:
    """The report's files by name.

    facts: of the bundle, shown as they are; "name" is the title's. figures: guard.json's.
    """
    facts, figures = without_nan(dict(facts)), without_nan(dict(figures))
    kind = "Recalibration" if figures.get("recalibrated_from") else "Calibration"
    made_with = {"": json.dumps(facts, indent=1, ensure_ascii=False)}
    report = Report(
        f"{kind} of {facts['name']}",
        _summary(figures),
        [
            *_plots(figures),
            *report_tables(figures),
            Texts("Made with", "", (("model, probe layers, versions", made_with),)),
        ],
    )
    return {
        HTML_NAME: report.to_html(),
        JSON_NAME: json_text({"facts": facts, "figures": figures}),
    }


def _summary(figures: Json) -> list[str]:
    came_from, chosen = measured(figures, "recalibrated_from"), measured(figures, "chosen")
    lines = [
        f"The probe is that of the bundle {came_from['bundle']} ({came_from['quantization']}), "
        "whose own report says how it was chosen; its scores and the policy were set anew for "
        "this file."
        if came_from
        else "Everything here was measured on the requests that the bundle was made from, each "
        "scored by a probe that had not seen it; the test split decided nothing, and what the "
        "finished guard does on some of it is a table of its own."
    ]
    if chosen:
        layers = ", ".join(str(layer) for layer in chosen["layers"])
        lines.append(f"The probe is {chosen['form']} and reads the outputs of blocks {layers}.")
    lines += _effort(figures)
    if figures.get("n_set_aside"):
        lines.append(
            f"{figures['n_set_aside']} of {figures['n_answers']} answers were set aside in its "
            "fit, for a probe without them took them for the opposite of their label."
        )
    vector = measured(figures, "calibration", "vector")
    if vector:
        verb = "is used" if vector.get("enabled") else "is not used"
        lines.append(f"An alignment vector {verb}: {vector.get('why', 'no reason is recorded')}.")
    return lines


def _effort(figures: Json) -> list[str]:
    """What was not tried, and how little so few answers can tell."""
    effort = measured(figures, "calibration", "effort")
    if not effort.get("not_tried"):
        return []
    lines = [f"The effort was {effort['name']}. Not tried: {'; '.join(effort['not_tried'])}."]
    n_ordinary = (figures.get("n_own") or {}).get("ordinary", 0)
    if n_ordinary:
        # 95 %, of none of n: the rule of three.
        lines.append(
            f"The limits come from {n_ordinary} answers to ordinary requests. What happened in "
            f"none of them may happen in up to {min(100.0, 300 / n_ordinary):.1f} % of others."
        )
    return lines


# -- the plots: those without series are not shown -------------------------------------------------


def _plots(figures: Json) -> list[Plot]:
    separation = measured(figures, "calibration", "separation")
    return [
        *(_separation_plot(name, table) for name, table in separation.items()),
        _steps_plot(measured(figures, "nested")),
        *_state_plots(measured(figures, "calibration", "vector", "pictures")),
        _reliability_plot(measured(figures, "score_calibration", "reliability")),
        _touched_plot(chosen_policy(figures).get("thresholds") or []),
        _refusals_plot(chosen_policy(figures)),
    ]


def _separation_plot(name: str, table: Json) -> Plot:
    """A line for each of some steps. table: {"layers", "auroc", "n"}."""
    rows = list(zip(table["layers"], table["auroc"], strict=True))
    points = {
        f"step {step}": [
            PlotPoint(layer, row[step], f"layer {layer}, step {step}: {row[step]:.3f}")
            for layer, row in rows
            if step < len(row) and row[step] is not None
        ]
        for step in SHOWN_STEPS
    }
    return Plot(
        f"Separation by layer: {name}",
        "",
        _series(points, radius=2.5),
        x_label="layer (output of block, from 0)",
        y_label="AUROC",
        x_range=_up_to(layer for layer, _ in rows),
        y_range=_AUROC_RANGE,
    )


def _steps_plot(nested: Json) -> Plot:
    """With intervals."""
    steps = nested.get("steps") or []
    points: dict[str, list[PlotPoint]] = {}
    for key, name in STEP_KINDS.items():
        for row in steps:
            if row[key] is not None:
                bounds = auroc_interval(row[key], *n_compared(nested, key))
                label = f"step {row['step']}: {shown_spread(row[key], bounds)}"
                point = PlotPoint(row["step"], row[key], label, y_range=bounds)
                points.setdefault(name, []).append(point)
    return Plot(
        "Separation by step: the chosen probe",
        "",
        _series(points, radius=2.5),
        x_label="decoding step (0: the prompt's end)",
        y_label="AUROC",
        x_range=_up_to(row["step"] for row in steps),
        y_range=_AUROC_RANGE,
    )


def _state_plots(pictures: Json) -> Iterator[Plot]:
    """Prompts in the plane of two principal components: without the vector, and with it."""
    points: Json = measured(pictures, "points")
    everything = [point for rows in points.values() for point in rows]
    if not everything:
        return
    shares = pictures.get("explained") or []
    where = f"layer {pictures.get('layer')}; the plane holds {100 * sum(shares):.0f} % of variance"
    with_vector = [name for name in points if name.startswith(_WITH_VECTOR)]
    without = [name for name in points if name not in with_vector]
    text = [name for name in without if name.startswith("text")]
    for title, names in (
        ("without the vector", without),
        ("with the vector on media", [*with_vector, *text] if with_vector else []),
    ):
        yield Plot(
            f"Prompts' states {title}",
            where,
            _series(
                {name: [PlotPoint(row[0], row[1]) for row in points[name]] for name in names},
                joined=False,
                radius=3,
            ),
            x_label="first component",
            y_label="second component",
            x_range=_padded([point[0] for point in everything]),
            y_range=_padded([point[1] for point in everything]),
        )


def _reliability_plot(reliability: Json) -> Plot:
    """How often positions of a score are harmful, by score, for both ways to calibrate."""
    points = {
        name: [
            PlotPoint(
                row["mean_score"],
                row["harmful_share"],
                f"{name}: {row['n']} positions of mean score {row['mean_score']:.3f}, "
                f"{100 * row['harmful_share']:.1f} % harmful",
            )
            for row in found["bins"]
        ]
        for name, found in reliability.items()
    }
    ideal = Series("ideal", (PlotPoint(0, 0), PlotPoint(1, 1)), radius=0)
    return Plot(
        "Scores as chances",
        "",
        (ideal, *_series(points)) if points else (),
        x_label="mean score of the tenth, out of fold",
        y_label="share that is harmful",
    )


def _touched_plot(thresholds: Sequence[Json]) -> Plot:
    """Of harmful answers, and of benign ones, against ordinary ones."""
    rows = sorted(thresholds, key=lambda row: row["ordinary"] or 0.0)
    points = {
        name: [
            PlotPoint(
                row["ordinary"], row[key], f"τ {row['threshold']:.3f}: {100 * row[key]:.1f} %"
            )
            for row in rows
            if row.get(key) is not None and row["ordinary"] is not None
        ]
        for key, name in _TOUCHED.items()
    }
    return Plot(
        "Safety against benign change: what a threshold touches",
        "",
        _series(points),
        x_label="share of ordinary answers with a token above τ",
        y_label="share of answers with a token above τ",
        x_range=(0.0, max([0.05, *(row["ordinary"] or 0.0 for row in rows)])),
    )


def _refusals_plot(policy: Json) -> Plot:
    """Each rule of refusals that was tried: harmful against borderline answers."""
    tried, chosen = (
        [
            PlotPoint(row["borderline"], row["harmful"], label)
            for row in rows
            if row.get("borderline") is not None and row.get("harmful") is not None
        ]
        for rows, label in (
            (policy.get("refusal_settings") or [], ""),
            ([measured(policy, "refused")], "chosen"),
        )
    )
    return Plot(
        "Safety against benign change: what rules of refusal refuse",
        "",
        (
            *_series({"tried": tried}, joined=False, radius=2.5),
            *_series({"chosen": chosen if tried else []}, radius=5),
        ),
        x_label="share of borderline answers refused",
        y_label="share of harmful answers refused",
        x_range=(0.0, max([0.05, *(point.x for point in tried)])),
    )


def _series(
    points: Mapping[str, Sequence[PlotPoint]], *, joined: bool = True, radius: float = 4
) -> tuple[Series, ...]:
    """One for each name that has points."""
    return tuple(
        Series(name, tuple(each), joined=joined, radius=radius)
        for name, each in points.items()
        if each
    )


def _up_to(values: Iterable[int]) -> Range:
    """From 0 to a multiple of 5: axes have five parts."""
    return 0.0, float(max(5, -(-max(values, default=0) // 5) * 5))


def _padded(values: Sequence[float]) -> Range:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
