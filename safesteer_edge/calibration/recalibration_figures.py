"""What a recalibration decided, and what guard.json keeps of it: curves, and the old figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, cast

import numpy as np

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.calibration.policy_fit import FalseAlarmTargets, PolicyChoice
from safesteer_edge.calibration.replay import FIGURES_KEY, Replay, replay_to_json
from safesteer_edge.calibration.requests_data import LABELS
from safesteer_edge.calibration.rescale import Rescale
from safesteer_edge.calibration.scored_answers import ScoredAnswer
from safesteer_edge.guard.policy import GuardPolicy

_ORIGINAL_KEY: Final = "original"
_CURVE_QUANTILES: Final = 21


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What was decided from the answers. targets: the false alarms that were allowed."""

    rescale: Rescale
    choice: PolicyChoice
    targets: FalseAlarmTargets

    @property
    def policy(self) -> GuardPolicy:
        """Of rescaled scores."""
        return self.choice.policy


def targets_of(figures: Mapping[str, object]) -> FalseAlarmTargets:
    """The false alarms that a bundle was calibrated for, where its figures say so."""
    said = figures.get("targets")
    known: dict[str, Any] = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    usable = {
        field.name: float(known[field.name])
        for field in fields(FalseAlarmTargets)
        if isinstance(known.get(field.name), float) and 0 < known[field.name] < 1
    }
    return FalseAlarmTargets(**usable)


def recalibration_figures(
    bundle: GuardBundle,
    found: Recalibration,
    answers: Sequence[ScoredAnswer],
    after: Replay,
) -> dict[str, object]:
    """Free JSON. What an earlier calibration said comes along under `original`."""
    old = bundle.config.figures
    original = old.get(_ORIGINAL_KEY, {k: v for k, v in old.items() if k != FIGURES_KEY})
    n_by_label = {label: sum(answer.label == label for answer in answers) for label in LABELS}
    return {
        "recalibrated_from": {
            "bundle": bundle.config.name,
            "quantization": bundle.config.model.quantization,
            "probe_sha256": bundle.config.probe.sha256,
            "threshold": round(bundle.policy.threshold, 6),
        },
        "splits": ["train", "calibration"],
        "n_answers": n_by_label,
        "targets": asdict(found.targets),
        "rescale": {
            "slope": round(found.rescale.slope, 6),
            "intercept": round(found.rescale.intercept, 6),
        },
        "refused": {key: round(x, 4) for key, x in asdict(found.choice.refused).items()},
        "threshold_curve": threshold_curve(found.rescale.answers(answers)),
        "risk_settings": [
            {key: round(value, 4) for key, value in row.items()} for row in found.choice.curve
        ],
        FIGURES_KEY: replay_to_json(after),
        _ORIGINAL_KEY: original,
    }


def threshold_curve(answers: Sequence[ScoredAnswer]) -> list[dict[str, float]]:
    """Shares of answers with a token above τ, by label, for thresholds over all maxima."""
    maxima = {
        key: np.array([answer.scores.max() for answer in answers if wanted(answer)])
        for key, wanted in (
            ("ordinary", lambda a: a.label == "ordinary"),
            ("borderline", lambda a: a.label == "borderline"),
            ("harmful", lambda a: a.complies),
        )
    }
    grid = np.quantile(np.concatenate(list(maxima.values())), np.linspace(0, 1, _CURVE_QUANTILES))
    return [
        {
            "threshold": round(float(threshold), 4),
            **{
                key: round(float((values > threshold).mean()), 4)
                for key, values in maxima.items()
                if len(values)
            },
        }
        for threshold in grid
    ]
