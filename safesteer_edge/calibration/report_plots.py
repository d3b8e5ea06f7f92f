"""The plots of a calibration's report, from its figures; "" where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from safesteer_edge.metrics.statistics import auroc_interval
from safesteer_edge.report.svg import PlotPoint, Series, plot

Json = Mapping[str, Any]
SHOWN_STEPS: Final = (0, 1, 2, 4, 8, 16)
_WITH_VECTOR: Final = "media with vector"
_AUROC_RANGE: Final = (0.5, 1.0)  # what is worse than a coin lies on the axis
_KINDS: Final = (
    ("harmful", "complying answers to harmful requests"),
    ("harmless_twins", "answers to their harmless twins"),
    ("borderline", "answers to borderline requests"),
)


def separation_plot(table: Json) -> str:
    """AUROC by layer, a line for each of some steps. table: {"layers", "auroc", "n"}."""
    series: list[Series] = []
    for step in SHOWN_STEPS:
        points = [
            PlotPoint(layer, row[step], f"layer {layer}, step {step}: {row[step]:.3f}")
            for layer, row in zip(table["layers"], table["auroc"], strict=True)
            if step < len(row) and row[step] is not None
        ]
        if points:
            series.append(Series(f"step {step}", tuple(points), radius=2.5))
    if not series:
        return ""
    return plot(
        series,
        x_label="layer (output of block, from 0)",
        y_label="AUROC",
        x_range=(0.0, _rounded_up(max(table["layers"]))),
        y_range=_AUROC_RANGE,
    )


def steps_plot(nested: Json) -> str:
    """AUROC of the chosen probe by step, with intervals."""
    kinds = (
        ("against_ordinary", "ordinary", "n_ordinary"),
        ("against_borderline", "borderline", "n_borderline"),
        ("against_harmless_twins", "harmless twins", "n_harmless"),
        ("candidate", "refusal, same request", "n_candidate_pairs"),
    )
    series: list[Series] = []
    for key, name, count in kinds:
        points: list[PlotPoint] = []
        for row in nested["steps"]:
            value = row[key]
            if value is None:
                continue
            n_benign = nested[count]
            n_harmful = n_benign if key == "candidate" else nested["n_harmful"]
            bounds = auroc_interval(value, n_harmful, n_benign)
            label = f"step {row['step']}: {value:.3f} ({bounds[0]:.3f}–{bounds[1]:.3f})"
            points.append(PlotPoint(row["step"], value, label, y_range=bounds))
        if points:
            series.append(Series(name, tuple(points), radius=2.5))
    if not series:
        return ""
    return plot(
        series,
        x_label="decoding step (0: the prompt's end)",
        y_label="AUROC",
        x_range=(0.0, _rounded_up(max(row["step"] for row in nested["steps"]))),
        y_range=_AUROC_RANGE,
    )


def state_plots(pictures: Json) -> tuple[str, str]:
    """Prompts in the plane of two principal components: without the vector, and with it."""
    points: Mapping[str, Sequence[Sequence[float]]] = pictures.get("points") or {}
    everything = [point for rows in points.values() for point in rows]
    if not everything:
        return "", ""
    with_vector = [name for name in points if name.startswith(_WITH_VECTOR)]
    without = [name for name in points if name not in with_vector]
    text = [name for name in without if name.startswith("text")]
    ranges = [_padded([point[axis] for point in everything]) for axis in (0, 1)]

    def drawn(names: Sequence[str]) -> str:
        series = [
            Series(
                name,
                tuple(PlotPoint(row[0], row[1]) for row in points[name]),
                joined=False,
                radius=3,
            )
            for name in names
        ]
        return plot(
            series,
            x_label="first component",
            y_label="second component",
            x_range=ranges[0],
            y_range=ranges[1],
        )

    return drawn(without), drawn([*with_vector, *text]) if with_vector else ""


def reliability_plot(score_calibration: Json) -> str:
    """How often positions of a score are harmful, by score, for both ways to calibrate."""
    series = [Series("ideal", (PlotPoint(0, 0), PlotPoint(1, 1)), radius=0)]
    for name, found in (score_calibration.get("reliability") or {}).items():
        points = tuple(
            PlotPoint(
                row["mean_score"],
                row["harmful_share"],
                f"{name}: {row['n']} positions of mean score {row['mean_score']:.3f}, "
                f"{100 * row['harmful_share']:.1f} % harmful",
            )
            for row in found["bins"]
        )
        series.append(Series(name, points))
    if len(series) == 1:
        return ""
    return plot(
        series,
        x_label="mean score of the tenth, out of fold",
        y_label="share that is harmful",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def trade_off_plot(policy: Json) -> str:
    """What a threshold touches: of harmful answers, and of benign ones, against ordinary ones."""
    rows = sorted(policy.get("thresholds") or [], key=lambda row: row["ordinary"] or 0.0)
    series: list[Series] = []
    for key, name in _KINDS:
        points = tuple(
            PlotPoint(
                row["ordinary"], row[key], f"τ {row['threshold']:.3f}: {100 * row[key]:.1f} %"
            )
            for row in rows
            if row.get(key) is not None and row["ordinary"] is not None
        )
        if points:
            series.append(Series(name.split(" to ")[-1], points))
    if not series:
        return ""
    return plot(
        series,
        x_label="share of ordinary answers with a token above τ",
        y_label="share of answers with a token above τ",
        x_range=(0.0, max(0.05, *(row["ordinary"] or 0.0 for row in rows))),
        y_range=(0.0, 1.0),
    )


def refusals_plot(policy: Json) -> str:
    """What each rule of refusals that was tried refuses: harmful against borderline answers."""
    rows = [
        row
        for row in policy.get("refusal_settings") or []
        if row.get("borderline") is not None and row.get("harmful") is not None
    ]
    chosen = policy.get("refused") or {}
    if not rows:
        return ""
    series = [
        Series(
            "tried",
            tuple(PlotPoint(row["borderline"], row["harmful"]) for row in rows),
            joined=False,
            radius=2.5,
        )
    ]
    if chosen.get("borderline") is not None and chosen.get("harmful") is not None:
        at = PlotPoint(chosen["borderline"], chosen["harmful"], "chosen")
        series.append(Series("chosen", (at,), radius=5))
    return plot(
        series,
        x_label="share of borderline answers refused",
        y_label="share of harmful answers refused",
        x_range=(0.0, max(0.05, *(row["borderline"] for row in rows))),
        y_range=(0.0, 1.0),
    )


def _rounded_up(value: int) -> float:
    """To a multiple of 5: axes have five parts."""
    return float(max(5, -(-value // 5) * 5))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
