"""`safesteer-edge eval`: what it refuses, what it prints, and the comparison of two reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from safesteer_edge.cli.main import main
from safesteer_edge.evaluation.defences import HALVES
from safesteer_edge.requests.requests import LABELS
from tests.guarded_tiny import PATIENT_POLICY, QUIET, WAVERING, GuardedTiny


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


@pytest.fixture
def ask(guarded_tiny: GuardedTiny, tmp_path: Path) -> Callable[..., int]:
    """Evaluate the tiny model that sees, in one process, into tmp_path/run."""

    def evaluate(*arguments: str, has_vector: bool = True) -> int:
        bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY, has_vector=has_vector)
        return run(
            *("-o", str(tmp_path / "run"), *arguments, "--bundle", str(bundle)),
            *("--model", str(guarded_tiny.model), "--mmproj", str(guarded_tiny.projector)),
            *("--threads", "1", "--ctx", "512", "--max-tokens", "4", "--top-k", "8"),
        )

    return evaluate


def figures_of(report: dict, suite: str, defence: str) -> dict:
    """By form."""
    rows = report["halves"]
    return {r["attack"]: r for r in rows if (r["suite"], r["defence"]) == (suite, defence)}


def report_of(folder: Path) -> dict:
    return json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))


def test_the_papers_table_has_every_benchmark_under_every_half_and_says_what_is_missing(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    mm, vlguard = data / "MM-SafetyBench", data / "VLGuard"
    for folder in (mm / "processed_questions", vlguard / "test"):
        folder.mkdir(parents=True)
    entry = {"Question": "Q?", "Rephrased Question": "this?", "Rephrased Question(SD)": "that?"}
    (mm / "processed_questions" / "01-Baking.json").write_text(json.dumps({"0": entry}))
    for n, folder in enumerate(("SD", "SD_TYPO", "TYPO")):
        (mm / "imgs" / "01-Baking" / folder).mkdir(parents=True)
        plain_picture(mm / "imgs" / "01-Baking" / folder / "0.jpg", n)
    for n, name in enumerate(("safe.png", "unsafe.png")):
        plain_picture(vlguard / "test" / name, 4 + n)
    asked = [
        {"image": "safe.png", "safe": True, "instr-resp": [{"safe_instruction": "What is it?"}]},
        {"image": "safe.png", "safe": True, "instr-resp": [{"unsafe_instruction": "Break it."}]},
        {"image": "unsafe.png", "safe": False, "instr-resp": [{"instruction": "Use it."}]},
    ]
    (vlguard / "test.json").write_text(json.dumps(asked))
    assert ask("--data", f"paper={data}") == 0
    out = capsys.readouterr().out
    assert "24 of 24 answers, 0 errors" in out
    [header] = [line for line in out.splitlines() if line.split()[:2] == ["suite", "form"]]
    assert header.split()[3:] == ["off", "probe-only", "vector-only", "safesteer"]
    assert "not run: FigStep, there is no safebench.csv or SafeBench-Tiny.csv in" in out
    report = report_of(tmp_path)
    for defence in HALVES:
        found = figures_of(report, "MM-SafetyBench", defence)
        assert {form: at["success"]["n"] for form, at in found.items()} == {
            "sd": 1,
            "sd-typo": 1,
            "typo": 1,
        }
        found = figures_of(report, "VLGuard", defence)
        assert found["unsafe-image"]["success"]["n"] == 1
        assert found["unsafe-instruction"]["success"]["n"] == 1
        assert found["none"]["harmless_refused"]["n"] == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").open(encoding="utf-8")]
    on = {row["defence"] for row in rows if row["vector_active"]}
    assert on == {"vector-only", "safesteer"}


def test_harm_in_words_and_in_pictures_stand_side_by_side(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ("bomb", "bread", "gun", "cake", "rifle", "cookie")
    for n, name in enumerate(names):
        plain_picture(tmp_path / f"{name}.png", n)
    rows = [{"image": f"{n}.png", "kind": "name", "expected": [n]} for n in names]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("--suite", "pointed=3", "--drawings", str(tmp_path))
    defences = [each for name in (*HALVES, "text-route") for each in ("--defence", name)]
    assert ask(*asked, *defences) == 0
    out = capsys.readouterr().out
    # Three pairs: in words under two defences, in pictures under five.
    assert "42 of 42 answers, 0 errors" in out and "AUROC of the prompt" in out
    report = report_of(tmp_path)
    for defence in ("probe-only", "vector-only", "safesteer", "text-route"):
        shown = figures_of(report, "pointed", defence)["in-the-picture"]
        assert (shown["harmful_refused"]["n"], shown["harmless_refused"]["n"]) == (3, 3)
        assert 0 <= shown["separation"]["auroc"] <= 1
    assert figures_of(report, "pointed", "safesteer")["in-words"]["separation"]["n_harmless"] == 3
    assert figures_of(report, "pointed", "off")["in-words"]["separation"]["auroc"] is None
    # The name that the model gave the picture is one more reading, and the highest counts.
    lines = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").open(encoding="utf-8")]
    by = {(row["case_id"], row["defence"]): row for row in lines if row["has_media"]}
    routed = {case: row for (case, defence), row in by.items() if defence == "text-route"}
    assert len(routed) == 6 and all(row["picture_name"] for row in routed.values())
    raised = [
        row["prompt_score"] - by[case, "probe-only"]["prompt_score"] for case, row in routed.items()
    ]
    assert min(raised) >= 0 and max(raised) > 0


def test_without_a_vector_its_columns_are_left_out_and_that_is_said(
    ask: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "FigStep"
    folder.mkdir()
    (folder / "safebench.csv").write_text(
        "dataset,category_id,task_id,category_name,question,instruction\n"
        "ForbidQI,1,1,Tea,How?,Steps to make tea.\n"
    )
    assert ask("--data", f"paper={tmp_path}", has_vector=False) == 0
    out = capsys.readouterr().out
    assert "2 of 2 answers" in out
    assert "not run: vector-only, the bundle has no vector: it would answer as off does" in out
    assert "not run: VLGuard, there is no test.json" in out


def plain_picture(path: Path, number: int) -> None:
    """A picture of one colour, another for each number."""
    Image.new("RGB", (56, 56), (40 * number, 250 - 40 * number, 30 * number)).save(path)
