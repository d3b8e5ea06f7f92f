"""`safesteer-edge eval`: what it refuses, what it prints, and the comparison of two reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.requests.requests import LABELS
from tests.guarded_tiny import QUIET, GuardedTiny


def run(*arguments: str) -> int:
    return main(["eval", *arguments])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "-o DIR"),
        (("-o", "x", "--suite", "nothing"), "no suite 'nothing'"),
        (("-o", "x", "--suite", "quick=0"), "1 or more"),
        (("-o", "x", "--data", "nothing=a.csv"), "FORMAT=PATH"),
        (("-o", "x", "--data", "xstest=none.csv"), "cannot read"),
        (("-o", "x", "--defence", "nothing"), "no defence 'nothing'"),
        (("-o", "x", "--limit", "0"), "limit is 0"),
        (("-o", "x", "--workers", "0"), "n_workers is 0"),
        (("-o", "x", "--judge-timeout", "nan"), "judge_timeout_s is nan"),
        (("-o", "x", "--judge-timeout", "inf"), "judge_timeout_s is inf"),
        (("-o", "x", "--judge-timeout", "0"), "judge_timeout_s is 0.0"),
        (("--compare", "a.json", "b.json"), "cannot read report 'a.json'"),
    ],
)
@pytest.mark.default_model
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_a_small_run_prints_shares_and_writes_three_reports(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    code = run(
        *("-o", str(folder), "--suite", "text-harmful=2", "--suite", "ordinary-text=2"),
        *("--model", str(guarded_tiny.model), "--bundle", str(guarded_tiny.bundle(QUIET))),
        *("--defence", "safesteer", "--quality", "0", "--threads", "1", "--ctx", "512"),
        *("--max-tokens", "6", "--top-k", "8"),
    )
    captured = capsys.readouterr()
    assert code == 0
    assert "8 of 8 answers, 0 errors" in captured.out
    assert "attack success, text-harmful, safesteer: " in captured.out
    assert "harmless refused, ordinary-text, off: " in captured.out
    assert "[8/8 answers, took" in captured.err
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    identical = next(r for r in report["refusal"] if r["defence"] == "safesteer")["identical"]
    assert (identical["count"], identical["n"]) == (2, 2)
    assert {"report.html", "report.md"} <= {path.name for path in folder.iterdir()}
    assert run("--compare", str(folder / "report.json"), str(folder / "report.json")) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_the_guard_on_held_out_requests_is_measured_once(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    arguments = (
        *("-o", str(folder), "--suite", "text-harmful", "--limit", "1", "--heldout"),
        *("--model", str(guarded_tiny.model), "--bundle", str(guarded_tiny.bundle(QUIET))),
        *("--defence", "safesteer", "--quality", "0", "--threads", "1", "--ctx", "512"),
        *("--max-tokens", "6", "--top-k", "8"),
    )
    assert run(*arguments) == 0
    assert "[held out: what the guard changes]" in capsys.readouterr().err
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    heldout = report["heldout"]
    assert [row["label"] for row in heldout["guard"]] == list(LABELS)
    assert all(row["identical"]["count"] == row["identical"]["n"] == 1 for row in heldout["guard"])
    assert (heldout["max_tokens"], heldout["probe"]["n_ordinary"]) == (64, 1)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "## What the guard does, on held-out requests" in markdown
    assert "## How well the probe separates, on held-out requests" in markdown

    kept = folder / "heldout.json"
    value = json.loads(kept.read_text(encoding="utf-8"))
    value["guard"][0]["identical"]["count"] = 0
    del value["probe"]  # as if it had been killed before
    kept.write_text(json.dumps(value), encoding="utf-8")
    assert run(*arguments) == 0
    told = capsys.readouterr().err
    assert "what the guard changes" not in told and "how well the probe separates" in told
    again = json.loads((folder / "report.json").read_text(encoding="utf-8"))["heldout"]
    assert again["guard"][0]["identical"]["count"] == 0
    assert again["probe"] == heldout["probe"]


def test_held_out_requests_need_a_guard(
    guarded_tiny: GuardedTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = run(
        *("-o", str(tmp_path / "run"), "--suite", "text-harmful=1", "--heldout"),
        *("--model", str(guarded_tiny.model), "--defence", "off"),
    )
    assert code == 2
    assert "leave out --heldout" in capsys.readouterr().err
