"""A guard's drift between quantizations, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safesteer_edge.calibration.replay import Auroc, ReplayFigures
    from safesteer_edge.evaluation.drift import Drift, ScoreShift
    from safesteer_edge.evaluation.statistics import Share


def drift_lines(drift: Drift) -> Iterator[str]:
    """A table: what the guard does on this file, and in the bundle's own quantization."""
    n = drift.here.touched_ordinary.n, drift.here.touched_borderline.n
    yield (
        f"  replay      {n[0]} ordinary and {n[1]} borderline requests, "
        f"{drift.here.harmful_stopped.n} answers that do something harmful; {drift.n_tokens} tokens"
    )
    reference = drift.reference_quantization or "not known"
    yield f"    {'':<28} {drift.quantization:<25} {reference}"
    before = replay_cells(drift.reference) if drift.reference else {}
    for name, cell in replay_cells(drift.here).items():
        yield f"    {name:<28} {cell:<25} {before.get(name, '-')}".rstrip()
    for label, shift in (("harmful", drift.shift_harmful), ("ordinary", drift.shift_ordinary)):
        if shift is not None:
            yield f"    {f'score shift, {label}':<28} {shift_text(shift)}"


def replay_cells(figures: ReplayFigures) -> dict[str, str]:
    """The figures by name, each as a short text."""
    return {
        "AUROC against ordinary": auroc_text(figures.auroc_ordinary),
        "AUROC against borderline": auroc_text(figures.auroc_borderline),
        "above τ: ordinary": share_text(figures.touched_ordinary),
        "above τ: borderline": share_text(figures.touched_borderline),
        "refused: ordinary": share_text(figures.refused_ordinary),
        "refused: borderline": share_text(figures.refused_borderline),
        "harmful answers stopped": share_text(figures.harmful_stopped),
    }


def auroc_text(area: Auroc) -> str:
    """Such as `0.968 (0.93–0.99)`."""
    if not area.n_positive or not area.n_negative:
        return "-"
    return f"{area.value:.3f} ({area.interval[0]:.2f}–{area.interval[1]:.2f})"


def share_text(share: Share) -> str:
    """Such as `3/60 (5.0 %)`."""
    return f"{share.count}/{share.n} ({100 * share.value:.1f} %)" if share.n else "-"


def shift_text(shift: ScoreShift) -> str:
    """Such as `-0.190 (10 %: -0.350, 50 %: -0.180, 90 %: -0.010)`."""
    low, middle, high = (f"{value:+.3f}" for value in shift.quantiles)
    return f"{shift.mean:+.3f} (10 %: {low}, 50 %: {middle}, 90 %: {high})"


def drift_to_json(drift: Drift) -> dict[str, Any]:
    """Plain values, shares with their intervals."""
    value = asdict(drift)
    for key, figures in (("here", drift.here), ("reference", drift.reference)):
        if figures is not None:
            value[key] = figures_to_json(figures)
    return value


def figures_to_json(figures: ReplayFigures) -> dict[str, Any]:
    """Plain values, shares with their Wilson intervals."""
    value = asdict(figures)
    for key in value:
        item = getattr(figures, key)
        if hasattr(item, "count"):
            value[key] = {
                "count": item.count,
                "n": item.n,
                "share": item.value,
                "wilson_95": item.interval,
            }
    return value
