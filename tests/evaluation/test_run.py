"""Whole runs on the tiny model: every defence, pictures, errors, a kill, and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.evaluation.baselines import SOURCES
from safesteer_edge.evaluation.case_files import FileChoice
from safesteer_edge.evaluation.plan import EvalSettings, SuiteChoice
from safesteer_edge.evaluation.report_pages import write_reports
from safesteer_edge.evaluation.run import run_evaluation
from tests.guarded_tiny import QUIET, REFUSAL_TEXT, WAVERING, GuardedTiny

DEFENCES = ("off", "safesteer", "safety-prompt", "response-check", "refusal-direction")
N_OF_KIND = {"harmful": 1, "benign": 10}  # of two requests that are tried again
PARTS = ("prompt-refusal", "rerank-only", "openings-only")


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="module")
def run(guarded_tiny: GuardedTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures, prefilled answers and a user's file with errors."""
    folder = tmp_path_factory.mktemp("eval")
    data = folder / "mine.jsonl"
    lines = [
        {"id": "long", "request": "x " * 3000, "kind": "benign"},
        {"id": "ok", "request": "Two and two?", "kind": "benign", "expected": ["4"]},
        {"request": "no kind"},
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = EvalSettings(
        session=guarded_tiny.settings(
            guarded_tiny.bundle(WAVERING, has_vector=True),
            mmproj=guarded_tiny.projector,
            max_tokens=6,
        ),
        folder=folder / "run",
        suites=tuple(
            SuiteChoice(name, 1)
            for name in ("text-harmful", "typographic", "jailbreaks", "ordinary-text")
        ),
        files=(FileChoice("jsonl", data),),
        defences=(*DEFENCES, *PARTS, "vector-only", "probe-only", "eager", "paper"),
        n_quality=1,
        n_workers=2,
    )
    run_evaluation(settings)
    return folder / "run"


def test_every_case_has_a_row_under_every_defence(run: Path):
    rows = rows_of(run)
    keys = [(row["suite"], row["case_id"], row["defence"]) for row in rows]
    assert len(set(keys)) == len(keys)
    n_by_defence = Counter(row["defence"] for row in rows)
    assert {n_by_defence[name] for name in DEFENCES} == {1 + 1 + 13 + 1 + 2}
    assert n_by_defence["vector-only"] == n_by_defence["probe-only"] == 1
    assert {row["status"] for row in rows} == {"ok", "error"}


def test_the_prompts_score_alone_answers_as_no_defence_does_or_refuses_in_fixed_words(run: Path):
    rows = {
        (row["suite"], row["case_id"], row["defence"]): row
        for row in rows_of(run)
        if row["status"] == "ok" and not row["has_media"]
    }
    checked = [(key, row) for key, row in rows.items() if key[2] == "prompt-refusal"]
    assert len(checked) >= 14  # of the wrappings one may be too long for it
    for (suite, case_id, _), row in checked:
        off = rows[suite, case_id, "off"]
        assert row["answer"] == (REFUSAL_TEXT if row["withheld"] else off["answer"])
        assert not row["withheld"] or row["n_tokens"] == 0
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))["baselines"]
    assert 0 <= facts["prompt_limit"] <= 1
    assert {label: each["n"] for label, each in facts["prompt_alarms"].items()} == {
        "ordinary": 40,
        "borderline": 40,
    }


def test_parts_of_the_guard_never_put_in_the_fixed_sentence(run: Path):
    rows = [row for row in rows_of(run) if row["defence"] in ("rerank-only", "openings-only")]
    assert rows
    assert all(row["finish_reason"] != "refused" for row in rows)


def test_what_cannot_be_asked_is_an_error_and_no_answer(run: Path):
    errors = [row for row in rows_of(run) if row["status"] == "error"]
    assert {row["case_id"] for row in errors} <= {"long", *(r["case_id"] for r in errors)}
    assert any("room for" in row["error"] for row in errors if row["case_id"] == "long")
    assert all(row["answer"] == "" for row in errors)
    report = write_reports(run)
    assert report["counts"]["errors"] == len(errors)
    assert report["counts"]["unreadable_rows"] == 1


def test_a_prefilled_answer_begins_with_its_tokens(run: Path):
    rows = {
        (row["attack"], row["defence"]): row
        for row in rows_of(run)
        if row["attack"].startswith("prefill") and row["status"] == "ok"
    }
    assert {rows[f"prefill-{n}", "off"]["n_given"] for n in (5, 10, 20, 40)} == {5, 10, 20, 40}
    assert rows["prefill-5", "off"]["answer"].startswith(rows["prefill-5", "off"]["answer"][:3])


def test_a_defence_leaves_its_marks(run: Path):
    ok = [row for row in rows_of(run) if row["status"] == "ok"]
    by_defence = {
        name: [r for r in ok if r["defence"] == name]
        for name in Counter(row["defence"] for row in ok)
    }
    assert all(row["mean_score"] is None and not row["scores"] for row in by_defence["off"])
    assert all(row["mean_score"] is not None for row in by_defence["safesteer"])
    assert all(row["vector_active"] for row in by_defence["vector-only"])
    assert not any(row["vector_active"] for row in by_defence["probe-only"])
    assert all(row["vector_active"] for row in by_defence["refusal-direction"])
    pictures = [row for row in by_defence["safesteer"] if row["has_media"]]
    assert pictures and all(row["vector_active"] for row in pictures)
    withheld = [row for row in by_defence["response-check"] if row["withheld"]]
    assert all(row["own_answer"] != row["answer"] for row in withheld)


def test_the_report_has_quality_and_cost(run: Path):
    report = write_reports(run)
    kl = {row["defence"]: row["kl_mean"] for row in report["quality"]}
    assert kl["off"] is None and kl["response-check"] is None
    assert kl["safety-prompt"] > 0 and kl["refusal-direction"] > 0
    assert kl["safesteer"] >= 0
    assert all(row["perplexity"] > 1 for row in report["quality"])
    assert {row["defence"] for row in report["cost"]} >= set(DEFENCES)
    direction = report["facts"]["baselines"]["direction"]
    assert direction["chosen"] in direction["curve"]
    assert {row["source"] for row in direction["curve"]} == set(SOURCES)
    assert all(row["refused"] <= direction["n_harmful"] for row in direction["curve"])
    assert "How the refusal direction was chosen" in (run / "report.md").read_text()
    assert (run / "report.html").stat().st_size > 10_000


def test_the_same_command_does_nothing_twice(run: Path, guarded_tiny: GuardedTiny):
    before = (run / "rows.jsonl").read_bytes()
    plan = json.loads((run / "plan.json").read_text())
    assert plan["max_tokens"] == 6
    other = EvalSettings(
        session=guarded_tiny.settings(guarded_tiny.bundle(QUIET), max_tokens=6),
        folder=run,
        suites=(SuiteChoice("text-harmful", 1),),
    )
    with pytest.raises(InputError, match="holds another run"):
        run_evaluation(other)
    assert (run / "rows.jsonl").read_bytes() == before


def test_disguises_are_told_form_by_form_and_tries_as_a_curve(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = EvalSettings(
        session=guarded_tiny.settings(guarded_tiny.bundle(WAVERING), max_tokens=6, n_ctx=1024),
        folder=tmp_path / "run",
        suites=tuple(SuiteChoice(name, 2) for name in ("multi-turn", "languages", "adaptive")),
        defences=("safesteer", "safety-prompt"),
        n_quality=0,
        n_tries=4,
    )
    run_evaluation(settings)
    report = write_reports(tmp_path / "run")
    forms = [row for row in report["forms"] if row["suite"] == "multi-turn"]
    assert len(forms) == 3 * 9
    assert all(row["stopped"]["n"] == row["lost"]["n"] == 1 for row in forms)
    tried = [row for row in rows_of(tmp_path / "run") if row["suite"] == "adaptive"]
    kinds = Counter((row["defence"], row["kind"]) for row in tried)
    assert kinds == {(d, k): n for d in ("off", "safesteer") for k, n in N_OF_KIND.items()}
    assert all(1 <= row["tries"] <= 4 for row in tried if row["kind"] == "harmful")
    curve = [row["share"] for row in report["adaptive"] if row["defence"] == "safesteer"]
    assert curve == sorted(curve)
    assert len(curve) >= 1
    text = (tmp_path / "run" / "report.md").read_text()
    assert "Requests answered within so many tries" in text and "number-three" in text


def command(tiny: GuardedTiny, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "safesteer_edge", "eval", "-o", str(folder)),
        *("--model", str(tiny.model), "--bundle", str(tiny.bundle(WAVERING))),
        *("--suite", "text-harmful=24", "--defence", "safesteer", "--quality", "0"),
        *("--threads", "1", "--ctx", "512", "--max-tokens", "48", "--top-k", "8"),
    ]


def test_a_run_that_was_killed_goes_on_where_it_stood(guarded_tiny: GuardedTiny, tmp_path: Path):
    folder = tmp_path / "run"
    rows = folder / "rows.jsonl"
    process = subprocess.Popen(
        command(guarded_tiny, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not rows.exists() or rows.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "waited in vain for five rows"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = rows.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert before.count(b"\n") < 48
    ended = subprocess.run(
        command(guarded_tiny, folder), capture_output=True, text=True, check=True, timeout=600
    )
    assert rows.read_bytes().startswith(before)
    keys = [(row["case_id"], row["defence"]) for row in rows_of(folder)]
    assert len(set(keys)) == len(keys) == 48
    assert "48 of 48 answers, 0 errors" in ended.stdout


def test_a_model_that_does_not_see_is_not_asked_about_pictures(
    guarded_tiny: GuardedTiny, tmp_path: Path
):
    settings = EvalSettings(
        session=guarded_tiny.settings(guarded_tiny.bundle(QUIET)),
        folder=tmp_path / "run",
        suites=(SuiteChoice("typographic", 1),),
    )
    with pytest.raises(SettingsError, match="no suite has a case"):
        run_evaluation(settings)


def test_a_probe_needs_a_bundle(guarded_tiny: GuardedTiny, tmp_path: Path):
    settings = EvalSettings(
        session=guarded_tiny.settings(None),
        folder=tmp_path / "run",
        suites=(SuiteChoice("text-harmful", 1),),
        defences=("safesteer",),
    )
    with pytest.raises(SettingsError, match="no guard bundle"):
        run_evaluation(settings)
