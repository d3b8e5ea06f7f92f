"""Tables of what a finished guard does on test requests, and of a recalibration's line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safesteer_edge.calibration.replay import (
    FIGURES_KEY,
    Auroc,
    Replay,
    replay_figures,
    replay_from_json,
)
from safesteer_edge.evaluation.report.table import NOTHING, Table
from safesteer_edge.evaluation.statistics import Share

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
