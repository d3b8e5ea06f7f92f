"""Make the guard bundle of the embedded default model, from the project's own requests.

    python models/smollm2-135m-instruct/make_guard.py

Needs the extras `default-model` and `calibration`; takes about a quarter of an hour on two cores.
The test split is not read: `safesteer-edge measure` measures the result on it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safesteer_edge.calibration.harvest import HarvestPlan
from safesteer_edge.calibration.make_bundle import CalibrationSettings, make_bundle
from safesteer_edge.calibration.policy_fit import FalseAlarmTargets
from safesteer_edge.calibration.requests_data import load_requests
from safesteer_edge.settings import SessionSettings

FOLDER = Path(__file__).parent / "guard"
REFUSAL_TEXT = (
    "I can't help with that, because it could hurt someone. I'm glad to help another way."
)

# Of 30 blocks: early ones read words, the last ones the next token; meaning lies between.
LAYER_SETS = (
    (18,),
    (14, 18, 24),
    (12, 16, 20, 24, 28),
    (12, 14, 16, 18, 20, 22, 24, 26, 28),
)


def main() -> None:
    """Calibrate and write the bundle."""
    settings = CalibrationSettings(
        session=SessionSettings(),
        layer_sets=LAYER_SETS,
        regularisations=(1e-3, 3e-3),
        plan=HarvestPlan(),
        targets=FalseAlarmTargets(),
        refusal_text=REFUSAL_TEXT,
        name="smollm2-135m-instruct-q4_1",
    )
    requests = load_requests(splits=("train", "calibration"))
    print(f"wrote {make_bundle(FOLDER, settings, requests, _show_progress)}")


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
