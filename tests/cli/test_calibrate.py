"""`safesteer-edge calibrate`: what it makes loads, and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.calibration.layer_sets import layer_sets_for
from safesteer_edge.cli.exit_codes import BAD_INPUT, OK
from safesteer_edge.cli.main import main
from safesteer_edge.formats.model_file import check_language_model
from tests.guarded_tiny import GuardedTiny

COUNTS = {"harmful": 6, "harmless": 6, "borderline": 4, "ordinary": 6}


def write_requests(path: Path, labels: dict[str, int]) -> Path:
    rows = [
        {"text": f"{label} request number {number}", "label": label, "split": "train"}
        for label, n in labels.items()
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_bundle_made_from_a_users_requests_loads_for_its_model(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_requests(tmp_path / "requests.jsonl", COUNTS)
    folder = tmp_path / "guard"
    model = str(guarded_tiny.model)
    command = ["calibrate", model, "-o", str(folder), "--data", str(data), "--threads", "1"]
    assert main([*command, "--ctx", "512"]) == OK
    assert capsys.readouterr().out.strip() == str(folder)
    with load_bundle(folder, check_language_model(guarded_tiny.model)) as bundle:
        assert bundle.match == "exact"
        assert bundle.config.probe.layers in layer_sets_for(4)


def test_requests_of_one_kind_are_refused_before_any_work(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_requests(tmp_path / "requests.jsonl", {"harmful": 3})
    command = ["calibrate", str(guarded_tiny.model), "-o", str(tmp_path / "guard")]
    assert main([*command, "--data", str(data)]) == BAD_INPUT
    assert "no ordinary ones" in capsys.readouterr().err
    assert not (tmp_path / "guard").exists()


@pytest.mark.parametrize("n_layer", [1, 2, 4, 12, 30, 80])
def test_layer_sets_lie_inside_the_model_and_below_its_last_block(n_layer: int) -> None:
    for layers in layer_sets_for(n_layer):
        assert layers == tuple(sorted(set(layers)))
        assert 0 <= layers[0] <= layers[-1] <= max(0, n_layer - 2)
    assert layer_sets_for(30)[0] == (18,)
