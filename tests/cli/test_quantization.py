"""A bundle and another quantization of its model: `verify`, `calibrate --from`, `measure`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safesteer_edge.bundle.bundle import load_bundle
from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.requests import requests
from tests.requantized_tiny import DECIDING, RequantizedTiny
from tests.tiny_models import write_tiny_llama

USUAL = ["--threads", "1"]


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package's own, some only: the tiny model reads letter by letter."""
    for counts, n in ((requests.REPLAY_COUNTS, 2), (requests.RECALIBRATION_COUNTS, 4)):
        for label in counts:
            monkeypatch.setitem(counts, label, n)  # pyright: ignore[reportArgumentType]  # a dict


@pytest.fixture
def bundle(requantized_tiny: RequantizedTiny, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return Path(shutil.copytree(requantized_tiny.bundle, tmp_path / "guard"))


def test_verify_replays_where_the_quantization_is_another(
    requantized_tiny: RequantizedTiny,
    bundle: Path,
    few_requests: None,
    capsys: pytest.CaptureFixture[str],
):
    source, other = str(requantized_tiny.source), str(requantized_tiny.other.path)
    assert main(["verify", str(bundle), "--model", source, *USUAL]) == OK
    assert "replay" not in capsys.readouterr().out

    command = ["verify", str(bundle), "--model", other, *USUAL]
    main(command)
    out = capsys.readouterr().out
    assert "2 ordinary and 2 borderline requests" in out
    assert "Q8_0                      not known" in out
    assert "pass a file of that with --reference" in out

    main([*command, "--reference", source])
    compared = capsys.readouterr().out
    assert "Q8_0                      F32" in compared
    assert "score shift, harmful" in compared

    main(["verify", str(bundle), "--model", source, "--record", *USUAL])
    capsys.readouterr()
    main(command)
    recorded = capsys.readouterr().out
    assert recorded == compared
    main([*command, "--no-replay"])
    assert "score shift" not in capsys.readouterr().out


def test_the_drift_comes_as_json(
    requantized_tiny: RequantizedTiny,
    bundle: Path,
    few_requests: None,
    capsys: pytest.CaptureFixture[str],
):
    other = str(requantized_tiny.other.path)
    command = ["verify", str(bundle), "--model", other, "--limit", "1", "--json", *USUAL]
    main([*command, "--reference", str(requantized_tiny.source)])
    drift = json.loads(capsys.readouterr().out)["drift"]
    assert drift["verdict"] in ("steady", "recalibrate", "calibrate")
    assert drift["here"]["touched_ordinary"]["n"] == 1
    assert len(drift["here"]["touched_ordinary"]["wilson_95"]) == 2
    assert len(drift["shift_ordinary"]["quantiles"]) == 3
    assert drift["reference_quantization"] == "F32"
    assert isinstance(drift["next"], str)


def test_bad_input_is_one_line_and_exit_code_2(
    requantized_tiny: RequantizedTiny,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    other = str(requantized_tiny.other.path)
    wide = str(write_tiny_llama(tmp_path / "wide.gguf", n_embd=96))
    wrong: list[tuple[list[str], str]] = [
        (["verify", str(bundle), "--model", wide], "made for another model: n_embd 64"),
        (["verify", str(bundle), "--model", other, "--record"], "cannot record"),
        (["verify", str(bundle), "--model", other, "--limit", "0"], "--limit is 0"),
        (["verify", str(bundle), "--model", other, "--reference", other], "(Q8_0) is not the file"),
        (["calibrate", "--from", str(bundle), wide, "-o", str(tmp_path / "x")], "n_embd 64"),
        (["calibrate", "--from", str(bundle), other, "-o", str(bundle)], "made from"),
        (["calibrate", "--from", str(bundle), other, "-o", "x", "--audio"], "with text alone"),
        (["calibrate", "--from", str(bundle), other, "-o", "x", "--workers", "2"], "leave out"),
        (["measure", "quantization", "--types", "Q9"], "expected some of Q8_0"),
    ]
    for command, problem in wrong:
        assert main([*command, *USUAL]) == BAD_INPUT, command
        out, err = capsys.readouterr()
        assert out == ""
        assert problem in err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_calibrate_from_makes_a_bundle_that_verify_finds_steady(
    requantized_tiny: RequantizedTiny,
    bundle: Path,
    few_requests: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    other = str(requantized_tiny.other.path)
    data, made = tmp_path / "requests.jsonl", tmp_path / "made"
    rows = [{"text": r.text, "label": r.label, "split": "train"} for r in DECIDING]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["calibrate", "--from", str(bundle), other, "-o", str(made), "--data", str(data)]
    assert main([*command, *USUAL]) == OK
    out, err = capsys.readouterr()
    assert out.strip() == str(made)
    assert "harmful answers stopped" in err
    with load_bundle(made, check_language_model(Path(other)), device="cpu") as loaded:
        assert (loaded.match, loaded.warnings) == ("exact", ())
    # The replay that it recorded is what the same file gives again.
    verify = ["verify", str(made), "--model", other, "--replay", "--json", *USUAL]
    main(verify)
    drift = json.loads(capsys.readouterr().out)["drift"]
    assert drift["here"] == drift["reference"]
    assert drift["shift_harmful"]["mean"] == 0
    before = (made / "guard.json").read_bytes()
    assert main([*command, *USUAL]) == OK
    assert (made / "guard.json").read_bytes() == before


def test_measure_quantization_prints_a_table(
    requantized_tiny: RequantizedTiny,
    bundle: Path,
    few_requests: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ["measure", "quantization", "--model", str(requantized_tiny.source), "--limit", "1"]
    folder = ["--bundle", str(bundle), "--folder", str(tmp_path / "kept"), "--types", "Q8_0"]
    assert main([*command, *folder, *USUAL]) == OK
    out = capsys.readouterr().out
    assert [line[:8] for line in out.splitlines() if line.startswith("|")][2:] == [
        "| F32 | ",
        "| Q8_0 |",
    ]
    assert "Machine: " in out
