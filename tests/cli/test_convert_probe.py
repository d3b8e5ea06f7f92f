"""`safesteer-edge convert probe`: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.formats.onnx_file import check_onnx
from tests.converters.probe_parity import labels_of, scores_of, wide_states
from tests.tiny_models import write_tiny_llama

N_EMBD = 64
STATES = wide_states(n_features=N_EMBD)
LABELS = labels_of(STATES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama: 4 blocks, 64 wide."""
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", n_embd=N_EMBD)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A standardised linear probe that finds LABELS."""
    mean, scale = STATES.mean(axis=0), STATES.std(axis=0)
    fitted = LogisticRegression().fit((STATES - mean) / scale, LABELS)
    path = tmp_path / "mine.npz"
    np.savez(path, w=fitted.coef_[0], b=fitted.intercept_, mean=mean, scale=scale)
    return path


def convert(*arguments: object) -> int:
    from safesteer_edge.cli.main import main

    return main(["convert", "probe", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run what must fail as bad input in one line, and return that."""
    assert convert(*arguments) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_negative_layer_is_counted_from_the_models_last_block(
    probe: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "probe.onnx"
    flags = ("-o", output, "--harmful-class", 1)
    said = refused(capsys, probe, *flags, "--layer", -1)
    assert "--layer -1 counts from the last block; pass the model with --model" in said
    said = refused(capsys, probe, *flags, "--layer", -5, "--model", model)
    assert "--layer -5 is not in" in said
    assert not output.exists()
    assert convert(probe, *flags, "--layer", -1, "--model", model) == OK
    assert "layers counted from the first: 3 " in capsys.readouterr().out
    metadata = check_onnx(output.read_bytes(), name="probe").metadata
    assert metadata["safesteer.layers"] == "3"


def test_a_probe_is_converted_for_a_model(
    probe: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "states.npz", states=STATES, labels=LABELS)
    output = tmp_path / "probe.onnx"
    arguments = (probe, "-o", output, "--layer", 2, "--model", model)
    assert convert(*arguments, "--check-states", tmp_path / "states.npz") == OK
    printed = capsys.readouterr().out
    assert f"wrote {output} ({output.stat().st_size} bytes)" in printed
    assert "parity with the source on 400 states: max difference" in printed
    assert "AUROC 0.9" in printed
    metadata = check_onnx(output.read_bytes(), name="probe").metadata
    assert metadata["safesteer.layers"] == "2"
    assert metadata["safesteer.model.architecture"] == "llama"
    assert metadata["safesteer.model.quantization"] == "F32"
    assert len(metadata["safesteer.model.tensor_table_sha256"]) == 64


def test_without_labelled_states_it_says_that_the_direction_is_unchecked(
    probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert convert(probe, "-o", tmp_path / "probe.onnx") == OK
    assert "was not checked: give --check-states" in capsys.readouterr().out


def test_json_is_for_programs(probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "probe.onnx"
    assert convert(probe, "-o", output, "--json", "--quantize", "fp16") == OK
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["output"] == str(output)
    assert report["n_features"] == N_EMBD
    assert report["max_difference"] <= 1e-5
    assert report["auroc"] is None
    assert 0 < report["quantization_difference"] < 0.01


@pytest.mark.parametrize("quantization", ["int8", "fp16"])
def test_what_quantizing_costs_is_printed(
    quantization: str, probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert convert(probe, "-o", tmp_path / "probe.onnx", "--quantize", quantization) == OK
    assert f"{quantization} moves scores by up to " in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_probe_goes_back_and_comes_again(
    suffix: str, probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, back, again = tmp_path / "1.onnx", tmp_path / f"back.{suffix}", tmp_path / "2.onnx"
    assert [convert(probe, "-o", first), convert(first, "-o", back)] == [OK, OK]
    assert f"wrote {back}: 1 layer(s) of 64 numbers" in capsys.readouterr().out
    assert convert(back, "-o", again) == OK
    np.testing.assert_array_equal(scores_of(first, STATES), scores_of(again, STATES))


def test_flip_turns_the_score_round(probe: Path, tmp_path: Path):
    for name, flags in (("1.onnx", []), ("2.onnx", ["--flip"])):
        assert convert(probe, "-o", tmp_path / name, *flags) == OK
    scores = [scores_of(tmp_path / name, STATES) for name in ("1.onnx", "2.onnx")]
    np.testing.assert_allclose(scores[0] + scores[1], 1.0, atol=1e-6)


def test_a_probe_that_does_not_fit_the_model_is_refused(
    probe: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "probe.onnx"
    two = refused(capsys, probe, "-o", output, "--model", model, "--layer", 1, "--layer", 2)
    assert "takes 64 numbers" in two
    assert "2 × 64 = 128" in two
    outside = refused(capsys, probe, "-o", output, "--model", model, "--layer", 5)
    assert "--layer 5" in outside
    assert "expected 0 to 4" in outside
    other = write_tiny_llama(tmp_path / "wide.gguf", n_embd=128)
    assert "1 × 128" in refused(capsys, probe, "-o", output, "--model", other)
    assert not output.exists()


@pytest.mark.parametrize("name", ["probe.pkl", "probe.joblib", "probe.pickle", "probe.skops"])
def test_a_pickle_is_never_loaded_and_the_way_out_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    message = refused(capsys, tmp_path / name, "-o", tmp_path / "probe.onnx")
    assert "skops.io.dump(estimator, 'probe.skops')" in message
    joblib.dump({"estimator": None}, tmp_path / name)
    assert "it is a pickle" in refused(capsys, tmp_path / name, "-o", tmp_path / "probe.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{probe}", "-o", "{folder}/p.bin"], "name a .onnx file"),
        (["{probe}", "-o", "{folder}/probe.npz"], "convert to .onnx first"),
        (["{probe}", "-o", "{folder}/none/probe.onnx"], "cannot write"),
        (["{folder}/none.npz", "-o", "{folder}/p.onnx"], "no such file"),
        (["{folder}/none.npz", "-o", "{folder}/p.onnx", "--model", "{probe}"], "mine.npz"),
        (["{folder}", "-o", "{folder}/p.onnx"], "transform.safetensors"),
        (["{probe}", "-o", "{folder}/p.onnx", "--kind", "onnx"], "--kind onnx does not fit"),
        (["{probe}", "-o", "{folder}/p.onnx", "--kind", "autosteer"], "softmax (or none) for two"),
        (["{probe}", "-o", "{folder}/p.onnx", "--check-states", "{folder}/no.npz"], "no such"),
        (["{probe}", "-o", "{folder}/p.onnx", "--check-states", "{probe}"], "expected 'states'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str],
    reason: str,
    probe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    filled = [text.format(probe=probe, folder=tmp_path) for text in arguments]
    message = refused(capsys, *filled)
    assert reason in message
    assert list(tmp_path.iterdir()) == [probe]


def test_every_cut_of_every_source_is_refused(
    probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for suffix in ("onnx", "safetensors", "npz"):
        source = tmp_path / f"cut.{suffix}"
        if suffix == "onnx":
            convert(probe, "-o", source)
        else:
            convert(tmp_path / "cut.onnx", "-o", source)
    capsys.readouterr()
    for suffix in ("safetensors", "npz", "onnx"):
        source = tmp_path / f"cut.{suffix}"
        whole = source.read_bytes()
        for length in range(0, len(whole), len(whole) // 12):
            source.write_bytes(whole[:length])
            refused(capsys, source, "-o", tmp_path / "probe.onnx")
    assert not (tmp_path / "probe.onnx").exists()


@pytest.mark.parametrize(("package", "suffix"), [("onnx", "npz"), ("skops", "skops")])
def test_without_the_extra_the_error_names_it(
    package: str, suffix: str, probe: Path, tmp_path: Path
):
    import skops.io

    estimator = LogisticRegression().fit(STATES / 100, LABELS)
    skops.io.dump(estimator, tmp_path / "mine.skops")
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.modules['{package}.io'] = None\n"
        "from safesteer_edge.cli.main import main\n"
        f"sys.exit(main(['convert', 'probe', 'mine.{suffix}', '-o', 'probe.onnx']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == BAD_INPUT, result.stderr
    assert "'safesteer-edge[conversion]'" in result.stderr
    assert not (tmp_path / "probe.onnx").exists()


def test_neither_torch_nor_sklearn_is_imported_for_arrays(probe: Path, tmp_path: Path):
    program = (
        "import sys\n"
        "from safesteer_edge.cli.main import main\n"
        f"main(['convert', 'probe', {str(probe)!r}, '-o', 'probe.onnx'])\n"
        "print(*[n for n in ('torch', 'sklearn', 'skops', 'llama_cpp') if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == ""
