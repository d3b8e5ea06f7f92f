"""Make the guard bundle of the embedded default model, from the project's own requests.

    python models/smollm2-135m-instruct/make_guard.py [PROJECTOR.gguf]

A standard calibration that reads 1,200 of the 1,883 pairs and draws none of them: the model does
not read drawn words, so no vector can help it, and ordinary questions about pictures are read all
the same. PROJECTOR: default the catalogue's, if it is there. Needs the extras `default-model` and
`calibration`; takes some half an hour on two cores. The test split decides nothing: its answers are
recorded for `verify` at the end, and `safesteer-edge measure` and `eval` measure the result on it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from safesteer_edge.calibration.make_bundle import make_bundle
from safesteer_edge.calibration.settings import default_settings, package_requests, with_pictures
from safesteer_edge.session.settings import SessionSettings

FOLDER = Path(__file__).parent / "guard"
PLAN = {
    "n_read": 1_200,
    "n_read_translated": 8,
    "n_answered": 150,
    "n_answered_borderline": 200,
    "n_answered_benign": 210,
    "draws": False,
}


def main(projector: Path | None) -> None:
    """Calibrate and write the bundle."""
    session = SessionSettings(mmproj=projector)
    settings = default_settings(session, name="smollm2-135m-instruct-q4_1", effort="standard")
    plan = replace(settings.harvest.plan, **PLAN)
    settings = replace(
        settings,
        harvest=replace(settings.harvest, plan=plan),
        effort=replace(settings.effort, tries_vector=False),
    )
    requests = with_pictures(session, package_requests())
    print(f"wrote {make_bundle(FOLDER, settings, requests, _show_progress)}")


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
