"""Make the guard bundle of a model as it ships, from the project's own requests.

    python models/make_guard.py smollm2-135m-instruct --advbench harmful_behaviors.csv
    python models/make_guard.py qwen2.5-coder-1.5b-instruct --model MODEL.gguf

The default's is a standard calibration without drawn requests: the model does not read drawn words,
so no vector can help it, and ordinary questions about pictures are read all the same. It declines
nothing by itself, and what it is asked most bluntly our own requests have least of: it also learns
from every eighth request of AdvBench (MIT, https://github.com/llm-attacks/llm-attacks,
data/advbench). All of them would make an alarm of each order that begins with a verb. The others'
are quick calibrations. A file is needed where the model is not in the user's model folder.

Needs the extra `calibration`, and for the default `default-model`. The test split decides nothing:
its answers are recorded for `verify` at the end, and `safesteer-edge measure` and `eval` measure
the result on it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.calibration.make_bundle import make_bundle
from safesteer_edge.calibration.settings import (
    EffortName,
    default_settings,
    package_requests,
    with_pictures,
)
from safesteer_edge.evaluation.case_rows import csv_rows, text_of
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class Recipe:
    """plan: what of the effort's plan is different. advbench_step: each so many-th row; 0: none."""

    effort: EffortName
    bundle: str
    plan: dict[str, Any]
    targets: FalseAlarmTargets = field(default_factory=FalseAlarmTargets)
    advbench_step: int = 0


RECIPES: Final[dict[str, Recipe]] = {
    "smollm2-135m-instruct": Recipe(
        "standard",
        "smollm2-135m-instruct-q4_1",
        {
            "n_read_translated": 8,
            "n_answered": 150,
            "n_answered_borderline": 200,
            "n_answered_benign": 210,
            "draws": False,
        },
        FalseAlarmTargets(borderline_refused=0.04),
        advbench_step=8,
    ),
    "qwen2.5-coder-0.5b-instruct": Recipe("quick", "qwen2.5-coder-0.5b-instruct", {}),
    "qwen2.5-coder-1.5b-instruct": Recipe(
        "quick",
        "qwen2.5-coder-1.5b-instruct",
        {"n_read": 650, "n_read_borderline": 450, "n_read_ordinary": 300, "n_read_translated": 8},
    ),
}


def main(name: str, model: str, advbench: Path | None) -> None:
    """Calibrate and write the bundle."""
    recipe = RECIPES[name]
    requests = package_requests()
    session = SessionSettings(model=model)
    if recipe.effort == "standard":
        requests = with_pictures(session, requests)
    if recipe.advbench_step:
        if advbench is None:
            sys.exit(f"{name} is made with --advbench harmful_behaviors.csv")
        requests = (*requests, *advbench_requests(advbench, recipe.advbench_step))
    settings = default_settings(session, name=recipe.bundle, effort=recipe.effort)
    settings = replace(
        settings,
        harvest=replace(settings.harvest, plan=replace(settings.harvest.plan, **recipe.plan)),
        effort=replace(settings.effort, tries_vector=False),
        targets=recipe.targets,
    )
    folder = Path(__file__).parent / name / "guard"
    print(f"wrote {make_bundle(folder, settings, requests, _show_progress)}")


def advbench_requests(path: Path, step: int) -> tuple[Request, ...]:
    """Each step-th of AdvBench's requests: column `goal`, or `Behavior` as HarmBench packs it."""
    rows = csv_rows(path, [("goal", "Behavior")])
    texts = [text_of(row, "goal") for _, row in rows]
    return tuple(
        Request(f"advbench-{index}", text, "harmful", "advbench", "train", "en")
        for index, text in enumerate(texts)
        if index % step == 0
    )


def _show_progress(what: str, n_done: int, n_total: int) -> None:
    end = "\n" if n_done == n_total else ""
    print(f"\r{what}: {n_done}/{n_total}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the guard bundle of a model as it ships.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--model", metavar="FILE.gguf", help="default: the catalogue's, by name")
    parser.add_argument("--advbench", metavar="FILE.csv", type=Path)
    options = parser.parse_args()
    main(options.name, options.model or options.name, options.advbench)
