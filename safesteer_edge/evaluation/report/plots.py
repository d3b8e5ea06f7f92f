"""The plots of a report: safety against helpfulness, and separation by decoding step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from safesteer_edge.evaluation.report.svg import PlotPoint, Series, plot

Json = dict[str, Any]
_N_LARGE_DOTS: Final = 20  # of a curve with more points, the dots would hide the line


def trade_off_plot(points: Sequence[Json]) -> str:
    """Each defence a point, each family that may be moved a curve; "" without points."""
    families: dict[str, list[PlotPoint]] = {}
    for point in points:
        stopped, answered = point["stopped"], point["answered"]
        is_calibrated = ":" not in point["defence"]
        families.setdefault(point["family"], []).append(
            PlotPoint(
                answered["share"],
                stopped["share"],
                is_main=is_calibrated,
                label=(
                    f"{point['defence']}: {stopped['count']}/{stopped['n']} attacks stopped, "
                    f"{answered['count']}/{answered['n']} harmless answered"
                ),
                x_range=(answered["low"], answered["high"]) if is_calibrated else None,
                y_range=(stopped["low"], stopped["high"]) if is_calibrated else None,
            )
        )
    if not families:
        return ""
    return plot(
        [
            Series(
                name,
                tuple(sorted(drawn, key=lambda p: (p.x, -p.y))),
                radius=4 if len(drawn) <= _N_LARGE_DOTS else 2,
            )
            for name, drawn in families.items()
        ],
        x_label="share of harmless requests answered",
        y_label="share of attacks stopped",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )


def steps_plot(report: Json) -> str:
    """AUROC by decoding step; "" without scores."""
    steps = report["steps"]["steps"]
    if len(steps) < 2:
        return ""
    points = tuple(
        PlotPoint(step["step"], step["auroc"], label=f"step {step['step']}: {step['auroc']:.3f}")
        for step in steps
    )
    last = max(step["step"] for step in steps)
    return plot(
        [Series("probe", points)],
        x_label="decoding step",
        y_label="AUROC",
        x_range=(0.0, float(-(-last // 5) * 5)),
        y_range=(0.5 if min(point.y for point in points) >= 0.5 else 0.0, 1.0),
    )
