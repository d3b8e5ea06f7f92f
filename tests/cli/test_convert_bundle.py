"""`safesteer-edge convert bundle` makes a bundle that loads, guards, and says what it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.cli.main import main
from safesteer_edge.formats.control_vector_file import ControlVector, write_control_vector
from safesteer_edge.session.session import open_session
from tests.bundle.linear_probe import probe_onnx
from tests.guarded_tiny import PROBE_LAYERS, GuardedTiny

LAYERS = [str(layer) for layer in PROBE_LAYERS]


@pytest.fixture
def probe(guarded_tiny: GuardedTiny, tmp_path: Path) -> Path:
    (tmp_path / "probe.onnx").write_bytes(guarded_tiny.parts().probe_onnx)
    return tmp_path / "probe.onnx"


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
    vector: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    np.savez(tmp_path / "source.npz", w=guarded_tiny.weights, b=guarded_tiny.offset)
    arguments = ["--layers", *LAYERS, "--vector", str(vector), "--scale", "0.5"]
    source = ["--source", str(tmp_path / "source.npz"), "--name", "mine"]
    assert convert(guarded_tiny, probe, tmp_path / "out", *arguments, *source) == 0
    out = capsys.readouterr().out
    assert "verified, UNCALIBRATED\n" in out
    assert "NOT calibrated" in out
    assert "safesteer-edge calibrate" in out
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


def test_a_session_runs_with_it(guarded_tiny: GuardedTiny, probe: Path, tmp_path: Path):
    assert convert(guarded_tiny, probe, tmp_path / "out", "--layers", *LAYERS) == 0
    with open_session(guarded_tiny.settings(tmp_path / "out", guard="steer")) as session:
        assert session.policy is not None
        assert session.policy.threshold == 0.5


def test_a_probe_of_the_final_norm_is_read_there(guarded_tiny: GuardedTiny, tmp_path: Path):
    weights = np.random.default_rng(1).standard_normal(64, dtype=np.float32)
    weights *= np.float32(0.125)
    (tmp_path / "final.onnx").write_bytes(probe_onnx(weights))
    assert convert(guarded_tiny, tmp_path / "final.onnx", tmp_path / "out", "--layers", "4") == 0
    with load_bundle(tmp_path / "out", guarded_tiny.info, device="cpu") as bundle:
        assert bundle.config.probe.route_hint == "final_norm"


def test_a_probe_that_names_its_layers_need_not_be_asked(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "p.npz", w=guarded_tiny.weights, b=guarded_tiny.offset)
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
    assert convert(guarded_tiny, probe, tmp_path / "out", "--layers", "2", "1") == 2
    assert "says that it reads layers [1, 2]" in capsys.readouterr().err


def test_a_probe_that_says_it_is_another_models_is_refused(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    says = {"safesteer.model.architecture": "gemma3"}
    (tmp_path / "p.onnx").write_bytes(probe_onnx(guarded_tiny.weights, metadata=says))
    assert convert(guarded_tiny, tmp_path / "p.onnx", tmp_path / "out", "--layers", *LAYERS) == 2
    assert "is for a model with architecture 'gemma3'" in capsys.readouterr().err


def test_a_probe_that_is_not_its_source_is_not_written(
    guarded_tiny: GuardedTiny, probe: Path, tmp_path: Path
):
    np.savez(tmp_path / "other.npz", w=-guarded_tiny.weights, b=0.0)
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
    assert (out, err.count("\n")) == ("", 1)
    assert problem in err
    assert sorted(tmp_path.iterdir()) == before
