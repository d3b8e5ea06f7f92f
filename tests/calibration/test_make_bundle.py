"""From a model and a few requests to a bundle that loads, and guards."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.calibration.make_bundle import (
    bundle_from_harvest,
    harvest_requests,
    make_bundle,
)
from safesteer_edge.calibration.settings import CalibrationSettings
from safesteer_edge.guard.events import Step, TurnEnded
from safesteer_edge.harvest.answers import HarvestPlan
from safesteer_edge.harvest.cache import HarvestSettings
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.run import Harvest
from safesteer_edge.requests.requests import LABELS, Request
from tests.guarded_tiny import GuardedTiny
from tests.made_up_answers import made_up_request
from tests.session.turns import opened

# The tiny model understands nothing: its states tell harmful requests by their letters.
REQUESTS: tuple[Request, ...] = tuple(
    replace(
        made_up_request(label, number),
        text=f"{number}{'zzzz' if label == 'harmful' else ' the'}" * 6,
        split="calibration" if number % 2 else "train",
    )
    for label in LABELS
    for number in range(2 if label == "borderline" else 4)
)
REFUSAL_TEXT = "Nein."


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that was made, what it was made from, and what was said meanwhile."""

    folder: Path
    settings: CalibrationSettings
    harvest: Harvest
    progress: list[tuple[str, int, int]]


def calibration(tiny: GuardedTiny) -> CalibrationSettings:
    return CalibrationSettings(
        HarvestSettings(
            tiny.settings(None, guard="steer"),  # which calibration does without
            HarvestPlan(n_own_tokens=8, n_forced_tokens=8, n_openings=2),
            tail_layers=(0, 1, 2),
        ),
        layer_sets=((2,), (1, 2), (2, 0)),
        regularisations=(0.01,),
        targets=FalseAlarmTargets(0.2, 0.2, 0.5, 0.5),
        refusal_text=REFUSAL_TEXT,
        name="made-here",
    )


@pytest.fixture(scope="module")
def made(guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle made from 14 requests."""
    settings = calibration(guarded_tiny)
    progress: list[tuple[str, int, int]] = []

    def note(what: str, n_done: int, n_total: int) -> None:
        progress.append((what, n_done, n_total))

    harvested = harvest_requests(settings, REQUESTS, note)
    folder = tmp_path_factory.mktemp("made") / "guard"
    assert bundle_from_harvest(folder, settings, REQUESTS, harvested, note) == folder
    return Made(folder, settings, harvested, progress)


def test_the_bundle_loads_for_its_model(made: Made, guarded_tiny: GuardedTiny):
    with load_bundle(made.folder, guarded_tiny.info, device="cpu") as bundle:
        assert (bundle.match, bundle.warnings) == ("exact", ())
        config = bundle.config
        assert (config.name, config.refusal_text) == ("made-here", REFUSAL_TEXT)
        assert config.probe.layers in made.settings.layer_sets
        assert bundle.probe.n_features == 64 * len(config.probe.layers)
        assert bundle.control_vector is None


def test_its_probe_scores_the_harvested_states_as_the_fit_did(
    made: Made, guarded_tiny: GuardedTiny
):
    with load_bundle(made.folder, guarded_tiny.info, device="cpu") as bundle:
        scores: dict[int, list[float]] = {0: [], 1: []}
        for answer in made.harvest.answers(bundle.config.probe.layers):
            states = answer.states[1:].astype(np.float32)
            scores[answer.label] += bundle.probe.score(states).tolist()
    assert np.mean(scores[1]) > np.mean(scores[0]) + 0.2


def test_a_session_runs_with_it_and_passes_its_self_test(made: Made, guarded_tiny: GuardedTiny):
    with opened(guarded_tiny, made.folder) as session:
        assert session.info.bundle == "made-here"
        events = list(session.ask(REQUESTS[0].text))
    assert isinstance(events[-1], TurnEnded)
    assert all(event.score is not None for event in events if isinstance(event, Step))


def test_its_norms_are_those_of_the_models_residual_stream(made: Made, guarded_tiny: GuardedTiny):
    config = json.loads((made.folder / "guard.json").read_text())
    np.testing.assert_allclose(config["residual_norms"], guarded_tiny.residual_norms, rtol=0.3)


def test_its_figures_say_what_was_tried(made: Made):
    figures = json.loads((made.folder / "guard.json").read_text())["figures"]
    assert figures["splits"] == ["train", "calibration"]
    tried = [(tuple(row["layers"]), row["form"]) for row in figures["tried"]]
    linear = [(layers, "linear") for layers in made.settings.layer_sets]
    assert tried == [*linear, ((1, 2), "pca-linear"), ((1, 2), "mlp")]
    assert figures["chosen"]["layers"] in [list(layers) for layers in made.settings.layer_sets]
    assert figures["targets"]["borderline_refused"] == 0.5
    policy = figures["calibration"]["policy"]
    config = json.loads((made.folder / "guard.json").read_text())
    assert policy["policy"] == config["policy"]
    assert len(policy["refusal_settings"]) > 10 and len(policy["thresholds"]) > 3
    assert 0 <= figures["out_of_fold"]["auroc_mean_score_harmful_against_ordinary"] <= 1


def test_its_report_lies_beside_it(made: Made):
    config = json.loads((made.folder / "guard.json").read_text())
    report = json.loads((made.folder / "report.json").read_text())
    assert report["figures"] == config["figures"]
    page = (made.folder / "report.html").read_text()
    assert "Calibration of made-here" in page
    assert page.count("<svg") >= 1  # so few requests leave most figures empty
    for request in REQUESTS:
        assert request.text not in page


def test_progress_is_told_to_the_end(made: Made):
    ends = {what: (n_done, n_total) for what, n_done, n_total in made.progress}
    assert ends == {
        "harvesting answers": (14, 14),
        "reading them in parts": (8, 8),
        "comparing probes": (5, 5),  # too few requests for outer folds
        "fitting the probe": (2, 2),
        "trying openings": (6, 6),
        "looking ahead": (4, 4),
        "comparing layers": (3, 3),
    }


def test_every_layer_of_every_set_is_harvested(made: Made):
    assert made.settings.harvest.tail_layers == made.harvest.shape.tail_layers == (0, 1, 2)
    assert made.harvest.shape.layers == (0, 1, 2)  # all but the last, which is out of reach


def test_test_requests_are_never_calibrated_on(guarded_tiny: GuardedTiny, tmp_path: Path):
    requests = [*REQUESTS, replace(made_up_request("ordinary", 9), split="test")]
    with pytest.raises(ValueError, match="test requests"):
        make_bundle(tmp_path / "guard", calibration(guarded_tiny), requests, lambda *_: None)
    assert not (tmp_path / "guard").exists()
