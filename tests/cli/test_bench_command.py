"""`safesteer-edge bench`: its options, its report and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from tests.guarded_tiny import make_guarded_tiny

SHORT = ("--prompts", "1", "--repeats", "1", "--max-tokens", "4", "--threads", "1")


def run(*arguments: str) -> int:
    return main(["bench", *arguments])


def test_the_report_is_printed_and_the_json_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = make_guarded_tiny(tmp_path)
    bundle = tiny.bundle()
    target = tmp_path / "bench.json"
    model = ("--model", str(tiny.model), "--bundle", str(bundle), "--ctx", "1024")
    assert run(*SHORT, *model, "--json", str(target)) == OK
    printed = capsys.readouterr()
    assert printed.out.startswith("What the guard tiny+0 costs tiny-")
    assert "repeat 1 of 1: eager" in printed.err
    value = json.loads(target.read_text(encoding="utf-8"))
    assert value["settings"]["max_tokens"] == 4
    assert len(value["answers"]) == 10


def test_a_process_of_its_own_is_compared_with_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = make_guarded_tiny(tmp_path)
    model = ("--model", str(tiny.model), "--bundle", str(tiny.bundle()), "--ctx", "1024")
    assert run(*SHORT, *model, "--isolate") == OK
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in printed[1:]] == ["benign", "harmful"]
    assert run(*SHORT, *model, "--isolate", "--json", "-") == OK
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert {(row["variant"], row["other"]) for row in ratios} == {("isolated", "lazy")}
    assert all(row["speed"]["median"] > 0 for row in ratios)


def test_a_server_is_compared_with_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny = make_guarded_tiny(tmp_path)
    model = ("--model", str(tiny.model), "--bundle", str(tiny.bundle()), "--ctx", "1024")
    assert run(*SHORT, *model, "--serve", "--json", "-") == OK
    ratios = json.loads(capsys.readouterr().out)["ratios"]
    assert {(row["variant"], row["other"]) for row in ratios} == {("served", "lazy")}
    assert all(row["speed"]["median"] > 0 for row in ratios)
    assert all(row["later_ms"]["median"] > -1e3 for row in ratios)


@pytest.mark.default_model
def test_the_default_model_is_benched_with_its_own_guard(capsys: pytest.CaptureFixture[str]):
    assert run(*SHORT, "--json", "-") == OK
    value = json.loads(capsys.readouterr().out)
    assert value["model"]["name"] == "smollm2-135m-instruct"
    assert value["model"]["bundle"]
    same = {(row["variant"], row["kind"]): row["n_same_text"] for row in value["variants"]}
    # With flash attention, as ours: without it, other kernels round differently.
    reference = "llama-cpp-python-flash"
    assert same[reference, "benign"] == same[reference, "harmful"] == 1


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for place in (tmp_path / "absent" / "bench.json", tmp_path):
        assert run("--json", str(place)) == BAD_INPUT
        assert capsys.readouterr().err.startswith("safesteer-edge: cannot write")


def test_the_cost_is_measured_as_the_context_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny = make_guarded_tiny(tmp_path)
    model = ("--model", str(tiny.model), "--bundle", str(tiny.bundle()), "--ctx", "2048")
    assert run(*SHORT, *model, "--context") == OK
    printed = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in printed[2:4]] == pytest.approx([512, 1024], abs=64)
    assert printed[-1].startswith("machine  ")
