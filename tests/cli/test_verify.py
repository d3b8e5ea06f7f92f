"""`safesteer-edge verify` tells a bundle that is right from one that is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesteer_edge.bundle.writer import write_bundle
from safesteer_edge.cli.main import main
from tests.guarded_tiny import PROBE_LAYERS, WAVERING, GuardedTiny

N_FEATURES = 64 * len(PROBE_LAYERS)


@pytest.fixture
def source(guarded_tiny: GuardedTiny, tmp_path: Path) -> Path:
    """The linear form of the bundle's probe."""
    np.savez(tmp_path / "probe.npz", w=guarded_tiny.weights, b=guarded_tiny.offset + WAVERING)
    return tmp_path / "probe.npz"


def verify(tiny: GuardedTiny, *arguments: str, has_vector: bool = True) -> int:
    folder = tiny.bundle(has_vector=has_vector)
    return main(["verify", str(folder), "--model", str(tiny.model), "--threads", "1", *arguments])


def test_a_good_bundle_is_verified(
    guarded_tiny: GuardedTiny, source: Path, capsys: pytest.CaptureFixture[str]
):
    assert verify(guarded_tiny, "--source", str(source)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "verified"
    assert "2 self-tests on the engine passed" in out
    assert "over 256 states" in out


def test_the_figures_come_as_json(
    guarded_tiny: GuardedTiny, source: Path, capsys: pytest.CaptureFixture[str]
):
    assert verify(guarded_tiny, "--source", str(source), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["probe"][0]["max_difference"] < 1e-5
    assert report["probe"][0]["largest_score"] - report["probe"][0]["least_score"] > 0.5
    layers = report["vector"][0]["layers"]
    assert report["vector"][0]["device"] == "CPU"
    assert [layer["layer_index"] for layer in layers] == [1, 2, 3]
    for layer in layers:
        assert layer["relative_error"] < 1e-3
        assert (layer["shift_below"], layer["landed_on"]) == (0.0, layer["layer_index"])


def test_a_source_in_another_form_gives_the_same_scores(guarded_tiny: GuardedTiny, tmp_path: Path):
    """Standardised, projected by a rotation, and calibrated: still the same function."""
    rng = np.random.default_rng(0)
    weights, bias = guarded_tiny.weights.astype(np.float64), guarded_tiny.offset + WAVERING
    mean, scale = rng.standard_normal(N_FEATURES), rng.uniform(0.5, 2, N_FEATURES)
    rotation = np.linalg.qr(rng.standard_normal((N_FEATURES, N_FEATURES)))[0]
    arrays: dict[str, Any] = {
        "mean": mean,
        "scale": scale,
        "components": rotation,
        "w": rotation @ (weights * scale) / 3.0,
        "b": (bias + weights @ mean - 0.5) / 3.0,
        "calibration.slope": 3.0,
        "calibration.intercept": 0.5,
    }
    np.savez(tmp_path / "other.npz", **arrays)
    assert verify(guarded_tiny, "--source", str(tmp_path / "other.npz")) == 0


def test_another_onnx_file_may_be_the_source(guarded_tiny: GuardedTiny, tmp_path: Path):
    folder = guarded_tiny.bundle(has_vector=True)
    same, other = tmp_path / "same.onnx", tmp_path / "other.onnx"
    same.write_bytes((folder / "probe.onnx").read_bytes())
    other.write_bytes(guarded_tiny.parts(bias=1.0).probe_onnx)
    assert verify(guarded_tiny, "--source", str(same)) == 0
    assert verify(guarded_tiny, "--source", str(other)) == 1


def test_another_probe_is_noticed(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for change in (1e-3, 5.0):
        np.savez(tmp_path / "p.npz", w=guarded_tiny.weights, b=guarded_tiny.offset + change)
        assert verify(guarded_tiny, "--source", str(tmp_path / "p.npz")) == 1
        assert "FAILED" in capsys.readouterr().out
    assert verify(guarded_tiny, "--source", str(tmp_path / "p.npz"), "--tolerance", "1") == 0


def test_a_source_whose_score_falls_with_harm_is_turned_round(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    bias = guarded_tiny.offset + WAVERING
    np.savez(tmp_path / "p.npz", w=-guarded_tiny.weights, b=-bias)
    assert verify(guarded_tiny, "--source", str(tmp_path / "p.npz")) == 1
    assert verify(guarded_tiny, "--source", str(tmp_path / "p.npz"), "--flip") == 0


def test_given_states_are_used(
    guarded_tiny: GuardedTiny, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    states = np.stack(list(guarded_tiny.states_by_tokens.values()))
    np.savez(tmp_path / "s.npz", states=states)
    arguments = ["--source", str(source), "--states", str(tmp_path / "s.npz"), "--json"]
    assert verify(guarded_tiny, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["probe"][0]["n_states"] == len(states)


def test_what_was_not_compared_is_said(
    guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]
):
    assert verify(guarded_tiny, has_vector=False) == 0
    out = capsys.readouterr().out
    assert "pass it with --source" in out
    assert "has no vector" in out


def test_a_damaged_bundle_is_not_verified(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in guarded_tiny.bundle(has_vector=True).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / "vector.gguf").read_bytes())
    data[-1] ^= 1
    (folder / "vector.gguf").write_bytes(data)
    assert main(["verify", str(folder), "--model", str(guarded_tiny.model)]) == 1
    out = capsys.readouterr().out
    assert "does not load" in out
    assert out.splitlines()[-1] == "NOT verified"


def test_a_guard_that_can_never_act_is_not_verified(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_bundle(tmp_path / "bundle", guarded_tiny.parts())
    config = json.loads((folder / "guard.json").read_text())
    config["policy"] |= {
        "strength": 1e-6,
        "threshold": 0.999999,
        "hard_threshold": 0.999999,
        "risk_limit": 1,
        "hard_patience": 1024,
    }
    (folder / "guard.json").write_text(json.dumps(config))
    assert main(["verify", str(folder), "--model", str(guarded_tiny.model)]) == 1
    out = capsys.readouterr().out
    assert "can never act" in out
    assert out.splitlines()[-1] == "NOT verified"


def test_a_guard_that_nobody_measured_is_verified_as_just_that(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_bundle(tmp_path / "bundle", replace(guarded_tiny.parts(), figures={}))
    arguments = ["verify", str(folder), "--model", str(guarded_tiny.model), "--threads", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verified, UNCALIBRATED"
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_calibrated"] is False


def test_a_probe_that_is_fed_other_layers_is_not_verified(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The files are whole and fit together; only the running model can tell."""
    parts = replace(guarded_tiny.parts(), probe_layers=(0, 2))
    folder = write_bundle(tmp_path / "bundle", parts)
    assert main(["verify", str(folder), "--model", str(guarded_tiny.model)]) == 1
    assert "self-test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--source", "missing.npz"], "missing.npz"),
        (["--source", "probe.pkl"], "probe.pkl"),
        (["--source", "narrow.npz"], "reads states of 5 values"),
        (["--source", "empty.npz"], "empty.npz"),
        (["--source", "probe.npz", "--states", "wrong.npz"], "expected (n, 128)"),
        (["--source", "probe.npz", "--states", "nan.npz"], "not finite"),
        (["--source", "probe.npz", "--states", "x.csv"], "expected one of"),
        (["--tolerance", "nan"], "--tolerance is nan; expected 0 to 1"),
        (["--tolerance", "inf"], "--tolerance is inf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    guarded_tiny: GuardedTiny,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
):
    assert source.name == "probe.npz"
    monkeypatch.chdir(tmp_path)
    np.savez("narrow.npz", w=np.ones(5), b=0.0)
    np.savez("empty.npz", x=np.ones(5))
    np.savez("wrong.npz", states=np.ones((3, 5)))
    np.savez("nan.npz", states=np.full((3, N_FEATURES), np.nan))
    assert verify(guarded_tiny, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert problem in err


def test_a_folder_without_a_bundle_is_bad_input(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", str(tmp_path), "--model", str(guarded_tiny.model)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
