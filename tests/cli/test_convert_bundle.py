"""`safesteer-edge convert bundle` makes a bundle that loads, guards, and says what it is not."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.calibration import separation
from safesteer_edge.calibration.assemble_bundle import CAUTIOUS_POLICY
from safesteer_edge.cli.main import main
from safesteer_edge.errors import BundleError
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector
from safesteer_edge.requests import requests
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.session import open_session
from tests.bundle.linear_probe import probe_onnx
from tests.guarded_tiny import PROBE_LAYERS, GuardedTiny, make_guarded_tiny
from tests.separating_probe import separating_weights

LAYERS = [str(layer) for layer in PROBE_LAYERS]


Weights = tuple[NDArray[np.float32], float]


@pytest.fixture(scope="module")
def weights(guarded_tiny: GuardedTiny) -> Weights:
    """Of a probe that separates, on PROBE_LAYERS."""
    return separating_weights(guarded_tiny)


@pytest.fixture
def probe(weights: Weights, tmp_path: Path) -> Path:
    (tmp_path / "probe.onnx").write_bytes(probe_onnx(*weights))
    return tmp_path / "probe.onnx"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> GuardedTiny:
    """A tiny model whose states have room for what a recalibration decides on; `probe.onnx`."""
    tiny = make_guarded_tiny(tmp_path_factory.mktemp("wide"), n_embd=128)
    weights = separating_weights(tiny, for_recalibration=True)
    (tiny.folder / "probe.onnx").write_bytes(probe_onnx(*weights))
    return tiny


@pytest.fixture
def few_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    for label in requests.REPLAY_COUNTS:
        monkeypatch.setitem(requests.REPLAY_COUNTS, label, 2)  # pyright: ignore[reportArgumentType]  # a dict


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    rows[0] = 0
    write_control_vector(tmp_path / "vector.gguf", ControlVector(rows, "llama"))
    return tmp_path / "vector.gguf"


def convert(tiny: GuardedTiny, probe: Path, output: Path, *arguments: str) -> int:
    model = ["--model", str(tiny.model), "--threads", "1"]
    return main(["convert", "bundle", "--probe", str(probe), *model, "-o", str(output), *arguments])


def test_the_bundle_loads_with_all_that_it_claims(
    guarded_tiny: GuardedTiny,
    probe: Path,
    weights: Weights,
    vector: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    np.savez(tmp_path / "source.npz", w=weights[0], b=weights[1])
    arguments = ["--layers", *LAYERS, "--vector", str(vector), "--scale", "0.5"]
    source = ["--source", str(tmp_path / "source.npz"), "--name", "mine"]
    assert convert(guarded_tiny, probe, tmp_path / "out", *arguments, *source) == 0
    out = capsys.readouterr().out
    assert "verified, UNCALIBRATED\n" in out
    assert "separation: AUROC 0.9" in out
    assert "NOT calibrated" in out
    assert "warning" not in out
    with load_bundle(tmp_path / "out", guarded_tiny.info, device="cpu") as bundle:
        assert (bundle.match, bundle.config.name) == ("exact", "mine")
        assert not bundle.is_calibrated
        (warning,) = bundle.warnings
        assert "UNCALIBRATED" in warning
        assert bundle.config.figures["calibrated"] is False
        assert bundle.config.probe.layers == PROBE_LAYERS
        assert len(bundle.config.canaries.engine) == 2
        steered = bundle.vector_for("image")
        assert steered is not None
        assert np.linalg.norm(steered.directions[1:], axis=1).min() > 1
    measured = np.array(bundle.config.residual_norms)
    np.testing.assert_allclose(measured, guarded_tiny.residual_norms, rtol=0.5)


@pytest.mark.parametrize("guard", ["steer", "refuse"])
def test_a_session_with_it_only_watches_until_it_is_calibrated(
    guarded_tiny: GuardedTiny, probe: Path, tmp_path: Path, guard: str
):
    assert convert(guarded_tiny, probe, tmp_path / "out", "--layers", *LAYERS) == 0
    with pytest.raises(BundleError, match="UNCALIBRATED") as caught:
        open_session(guarded_tiny.settings(tmp_path / "out", guard=guard))
    assert "--guard monitor" in str(caught.value)
    with open_session(guarded_tiny.settings(tmp_path / "out", guard="monitor")) as session:
        assert session.policy is not None
        assert session.policy.threshold == 0.5
        assert session.answer("Hello").text
        with pytest.raises(BundleError, match="UNCALIBRATED"):
            session.change(replace(session.turn_settings, guard=guard))


def test_a_folder_that_is_there_is_replaced_by_force_alone(
    guarded_tiny: GuardedTiny, probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert convert(guarded_tiny, probe, tmp_path / "out", "--layers", *LAYERS) == 0
    before = (tmp_path / "out" / "guard.json").read_bytes()
    capsys.readouterr()
    assert convert(guarded_tiny, probe, tmp_path / "out", "--layers", *LAYERS, "--name", "b") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "--force" in err) == ("", 1, True)
    assert (tmp_path / "out" / "guard.json").read_bytes() == before
    more = ["--layers", *LAYERS, "--name", "b", "--force"]
    assert convert(guarded_tiny, probe, tmp_path / "out", *more) == 0
    assert (tmp_path / "out" / "guard.json").read_bytes() != before


@pytest.mark.parametrize("seed", range(5))
def test_a_probe_of_random_weights_is_refused_with_what_was_measured(
    guarded_tiny: GuardedTiny, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
):
    noise = np.random.default_rng(seed).standard_normal(128).astype(np.float32)
    (tmp_path / "noise.onnx").write_bytes(probe_onnx(noise))
    arguments = ["--layers", *LAYERS]
    assert convert(guarded_tiny, tmp_path / "noise.onnx", tmp_path / "out", *arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"does not separate|scores harmful requests BELOW", err)
    assert re.search(r"AUROC 0\.\d{3} against ordinary and 0\.\d{3} against borderline", err)
    assert not (tmp_path / "out").exists()


def test_a_probe_that_points_the_wrong_way_is_refused(
    guarded_tiny: GuardedTiny,
    weights: Weights,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "flipped.onnx").write_bytes(probe_onnx(-weights[0], -weights[1]))
    arguments = ["--layers", *LAYERS]
    assert convert(guarded_tiny, tmp_path / "flipped.onnx", tmp_path / "out", *arguments) == 2
    err = capsys.readouterr().err
    assert "scores harmful requests BELOW others" in err
    assert "AUROC 0.0" in err
    assert "--flip" in err
    assert not (tmp_path / "out").exists()


def test_layers_counted_from_another_base_are_named(
    guarded_tiny: GuardedTiny,
    weights: Weights,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "probe.onnx").write_bytes(probe_onnx(*weights))
    assert (
        convert(guarded_tiny, tmp_path / "probe.onnx", tmp_path / "out", "--layers", "2", "3") == 2
    )
    assert "on layers [1, 2] it is 0.9" in capsys.readouterr().err
    # As where neighbouring blocks are more alike than those of a model of random weights.
    monkeypatch.setattr(separation, "MIN_ORDINARY", 0.0)
    monkeypatch.setattr(separation, "MIN_BORDERLINE", 0.0)
    assert (
        convert(guarded_tiny, tmp_path / "probe.onnx", tmp_path / "out", "--layers", "2", "3") == 0
    )
    out = capsys.readouterr().out
    assert "warning: on layers [1, 2] the same probe gives 0.9" in out


def test_the_command_that_it_recommends_works_as_printed(
    wide: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], few_replayed: None
):
    folder = tmp_path / "a folder"
    assert convert(wide, wide.folder / "probe.onnx", folder, "--layers", *LAYERS) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("calibrate it: ")]
    program, *arguments = shlex.split(line.removeprefix("calibrate it: "))
    assert program == "safesteer-edge"
    assert main(arguments) == 0
    made = Path(capsys.readouterr().out.strip())
    with load_bundle(made, wide.info, device="cpu") as bundle:
        assert bundle.is_calibrated
    with open_session(wide.settings(made, guard="steer")) as session:
        assert session.answer("Hello").text


def test_numbers_are_set_for_a_probe_that_stays_as_it_is(
    wide: GuardedTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    few_replayed: None,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    probe = wide.folder / "probe.onnx"
    command = ["calibrate", str(wide.model), "--probe", str(probe)]
    assert main([*command, "--layers", *LAYERS, "--from", "x"]) == 2
    assert main([*command, "--layers", *LAYERS, "--threads", "1"]) == 0
    captured = capsys.readouterr()
    out = Path(captured.out.strip())
    # Without -o it is where sessions of the model find it.
    assert choose_model(str(wide.model)).bundle == out
    assert (out / "report.html").is_file()
    found = re.search(r"separation: AUROC (0\.\d+)", captured.err)
    assert found is not None and float(found[1]) > 0.8
    assert (out / "probe.onnx").read_bytes() == probe.read_bytes()
    with load_bundle(out, wide.info, device="cpu") as bundle:
        assert bundle.is_calibrated
        assert bundle.policy != CAUTIOUS_POLICY


def test_a_probe_of_the_final_norm_is_read_there(wide: GuardedTiny, tmp_path: Path):
    weights = separating_weights(wide, (4,))
    (tmp_path / "final.onnx").write_bytes(probe_onnx(*weights))
    assert convert(wide, tmp_path / "final.onnx", tmp_path / "out", "--layers", "4") == 0
    with load_bundle(tmp_path / "out", wide.info, device="cpu") as bundle:
        assert bundle.config.probe.route_hint == "final_norm"


def test_a_probe_that_names_its_layers_need_not_be_asked(
    guarded_tiny: GuardedTiny,
    weights: Weights,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    np.savez(tmp_path / "p.npz", w=weights[0], b=weights[1])
    layers = [text for layer in LAYERS for text in ("--layer", layer)]
    probe = tmp_path / "p.onnx"
    model = ["--model", str(guarded_tiny.model)]
    assert (
        main(["convert", "probe", str(tmp_path / "p.npz"), "-o", str(probe), *layers, *model]) == 0
    )
    assert convert(guarded_tiny, probe, tmp_path / "out") == 0
    with load_bundle(tmp_path / "out", guarded_tiny.info, device="cpu") as bundle:
        assert bundle.config.probe.layers == PROBE_LAYERS
    capsys.readouterr()
    arguments = ["--layers", "2", "1", "--force"]
    assert convert(guarded_tiny, probe, tmp_path / "out", *arguments) == 2
    assert "says that it reads layers [1, 2]" in capsys.readouterr().err


def test_a_probe_that_says_it_is_another_models_is_refused(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    says = {"safesteer.model.architecture": "gemma3"}
    (tmp_path / "p.onnx").write_bytes(probe_onnx(guarded_tiny.weights, metadata=says))
    assert convert(guarded_tiny, tmp_path / "p.onnx", tmp_path / "out", "--layers", *LAYERS) == 2
    assert "is for a model with architecture 'gemma3'" in capsys.readouterr().err


def test_a_probe_that_is_not_its_source_is_not_written(
    guarded_tiny: GuardedTiny, weights: Weights, probe: Path, tmp_path: Path
):
    np.savez(tmp_path / "other.npz", w=-weights[0], b=0.0)
    arguments = ["--layers", *LAYERS, "--source", str(tmp_path / "other.npz")]
    assert convert(guarded_tiny, probe, tmp_path / "out", *arguments) == 1
    assert not (tmp_path / "out").exists()


def test_a_probe_that_is_constant_is_refused(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "flat.onnx").write_bytes(probe_onnx(np.zeros(128, np.float32)))
    arguments = ["--layers", *LAYERS]
    assert convert(guarded_tiny, tmp_path / "flat.onnx", tmp_path / "out", *arguments) == 2
    assert "tells nothing apart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "pass --layers"),
        (["--layers", "1"], "reads states of 128 values; layers [1]"),
        (["--layers", "1", "9"], "cannot read layers [1, 9]"),
        (["--layers", "1", "1"], "expected different block outputs"),
        (["--layers", "1", "4"], "4 alone (after the final norm)"),
        (["--layers", *LAYERS, "--vector", "vector.gguf"], "--scale"),
        (["--layers", *LAYERS, "--vector", "vector.gguf", "--scale", "1e3"], "lower the scale"),
        (["--layers", *LAYERS, "--vector", "vector.gguf", "--scale", "-0.1"], "backwards"),
        (["--layers", *LAYERS, "--vector", "wide.gguf", "--scale", "0.1"], "(4, 64)"),
        (["--layers", *LAYERS, "--vector", "deep.gguf", "--scale", "0.1"], "(9, 64)"),
        (["--layers", *LAYERS, "--vector", "gemma.gguf", "--scale", "0.1"], "'gemma3' models"),
        (["--layers", *LAYERS, "--vector", "silent.gguf", "--scale", "0.1"], "does not say"),
        (["--layers", *LAYERS, "--vector", "none.gguf", "--scale", "0.1"], "none.gguf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(
    guarded_tiny: GuardedTiny,
    probe: Path,
    vector: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
):
    assert vector.name == "vector.gguf"
    monkeypatch.chdir(tmp_path)
    for name, shape, hint, convention in (
        ("wide", (4, 32), "llama", "block_output_0based"),
        ("deep", (9, 64), "llama", "block_output_0based"),
        ("gemma", (4, 64), "gemma3", "block_output_0based"),
        ("silent", (4, 64), "llama", ""),
    ):
        rows = np.ones(shape, dtype=np.float32)
        rows[0] = 0
        write_control_vector(Path(f"{name}.gguf"), ControlVector(rows, hint, convention))
    before = sorted(tmp_path.iterdir())
    assert convert(guarded_tiny, probe, tmp_path / "out", *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("safesteer-edge: ")) == ("", 1)
    assert problem in err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
