"""What a recalibration decided, and what guard.json keeps of it: curves, and the old figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.calibration.policy_fit import PolicyChoice
from safesteer_edge.calibration.replay import FIGURES_KEY, Replay, replay_to_json
from safesteer_edge.calibration.requests_data import LABELS
from safesteer_edge.calibration.rescale import Rescale
from safesteer_edge.calibration.scored_answers import ScoredAnswer
from safesteer_edge.calibration.targets import FalseAlarmTargets
from safesteer_edge.guard.policy import GuardPolicy

_ORIGINAL_KEY: Final = "original"
_MAX_KEPT_CHARACTERS: Final = 4000


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


def recalibration_figures(
    bundle: GuardBundle,
    found: Recalibration,
    answers: Sequence[ScoredAnswer],
    after: Replay,
) -> dict[str, object]:
    """Free JSON. What the first calibration said comes along under `original`, its tables aside."""
    old = bundle.config.figures
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
        "policy_choice": found.choice.to_json(),
        FIGURES_KEY: replay_to_json(after),
        _ORIGINAL_KEY: old.get(_ORIGINAL_KEY) or _without_tables(old),
    }


def _without_tables(figures: Mapping[str, object]) -> dict[str, object]:
    """The small entries: guard.json has room for one set of curves."""
    return {
        key: value
        for key, value in figures.items()
        if key != FIGURES_KEY and len(json.dumps(value)) <= _MAX_KEPT_CHARACTERS
    }
