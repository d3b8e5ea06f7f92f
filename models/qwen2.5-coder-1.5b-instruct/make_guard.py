"""Make the guard bundle of Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, as it ships.

    python models/qwen2.5-coder-1.5b-instruct/make_guard.py MODEL.gguf

A quick calibration that reads fewer requests: `safesteer-edge calibrate MODEL.gguf` does the whole
of a quick one. Needs the extra `calibration`; takes some half an hour on two cores. The test split
decides nothing.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from safesteer_edge.calibration.make_bundle import make_bundle
from safesteer_edge.calibration.settings import default_settings, package_requests
from safesteer_edge.session.settings import SessionSettings

FOLDER = Path(__file__).parent / "guard"
PLAN = {
    "n_read": 600,
    "n_read_borderline": 400,
    "n_read_ordinary": 260,
    "n_read_translated": 6,
}


def main(model: str) -> None:
    """Calibrate and write the bundle."""
    session = SessionSettings(model=model, guard="off")
    settings = default_settings(session, name="qwen2.5-coder-1.5b-instruct", effort="quick")
    harvest = settings.harvest
    plan = replace(harvest.plan, **PLAN)
    settings = replace(settings, harvest=replace(harvest, plan=plan))
    requests = package_requests()
    print(f"wrote {make_bundle(FOLDER, settings, requests, _show_progress)}")


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
