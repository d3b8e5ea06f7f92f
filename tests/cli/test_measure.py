"""`safesteer-edge measure` on the tiny model, over a few of the project's own test requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.requests.requests import LABELS
from tests.cli.conftest import Ran
from tests.guarded_tiny import PATIENT_POLICY, QUIET, WAVERING, GuardedTiny

Measure = Callable[..., Ran]


@pytest.fixture
def measure(guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]) -> Measure:
    """Run `measure` on the tiny model with one request of each label."""

    def run(what: str, *arguments: str, bundle: Path | None = None) -> Ran:
        chosen = str(bundle or guarded_tiny.bundle(QUIET))
        model = ["--model", str(guarded_tiny.model), "--bundle", chosen]
        usual = ["--threads", "1", "--limit", "1", "--top-k", "8", "--max-tokens", "8"]
        exit_code = main(["measure", what, *model, *usual, *arguments])
        captured = capsys.readouterr()
        return Ran(exit_code, captured.out, captured.err)

    return run


def strict_json(text: str) -> Any:
    """Parse JSON as other programs do, which know no NaN and no Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_probe_prints_a_line_per_step(measure: Measure):
    ran = measure("probe")
    assert ran.exit_code == OK
    assert "1 ordinary, 1 borderline and 1 harmless twin requests" in " ".join(ran.out.split())
    rows = [line.split() for line in ran.out.splitlines()]
    steps = [row for row in rows if row and row[0].isdigit() and len(row) == 6]
    assert [int(row[0]) for row in steps] == list(range(17))
    assert ran.err.rstrip().endswith("requests: 5/5")  # the harmful one twice, after other openings


def test_probe_as_json_has_the_figures_of_every_step(measure: Measure):
    value = strict_json(measure("probe", "--json").out)
    assert [row["step"] for row in value["steps"]] == list(range(17))
    assert (value["n_harmful"], value["n_ordinary"]) == (1, 1)
    assert value["n_candidate_pairs"] == 2 * 2  # each complying opening with each refusing one
    assert len(value["known_openings"]["steps"]) == 17
    assert 0 <= value["known_openings"]["early_candidate"] <= 1
    assert all(0 <= row["against_ordinary"] <= 1 for row in value["steps"])


def test_guard_compares_each_label_with_the_guard_off(measure: Measure):
    ran = measure("guard")
    assert ran.exit_code == OK
    assert ran.out.startswith("guard steer (lazy) against off, 8 tokens\n")
    for label in LABELS:
        assert f"\n{label} requests\n" in ran.out
    assert ran.out.count("byte-identical answers   1/1 (100.0 %") == 4
    assert ran.out.count("forward passes a token   1.000") == 4


def test_guard_as_json_has_counts_and_intervals(measure: Measure, guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    rows = json.loads(measure("guard", "--json", bundle=bundle).out)
    assert [row["label"] for row in rows] == list(LABELS)
    for row in rows:
        for key in ("identical", "off_answered", "guarded_answered"):
            share = row[key]
            low, high = share["wilson_95"]
            assert 0 <= low <= share["count"] / share["n"] <= high <= 1
        assert row["passes_per_token"] > 1


def test_rerank_reports_what_it_compared(measure: Measure, guarded_tiny: GuardedTiny):
    bundle = guarded_tiny.bundle(WAVERING, PATIENT_POLICY)
    ran = measure("rerank", bundle=bundle)
    assert ran.exit_code == OK
    assert "of 2 prompts (" in ran.out
    assert "differences outside twice the noise: 0\n" in ran.out
    value = strict_json(measure("rerank", "--json", bundle=bundle).out)
    assert (value["n_prompts"], value["unexplained"]) == (2, 0)
    assert value["n_interventions"] > 0


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (["probe", "--guard", "off"], "--guard off"),
        (["rerank", "--temperature", "0.5"], "--temperature 0"),
        (["probe", "--limit", "0"], "limit"),
        (["guard", "--limit", "-1"], "limit"),
    ],
)
def test_what_cannot_be_measured_is_bad_input(measure: Measure, arguments: list[str], naming: str):
    ran = measure(*arguments)
    assert (ran.exit_code, ran.out) == (BAD_INPUT, "")
    (line,) = ran.err.splitlines()
    assert naming in line


def test_an_option_of_another_measure_is_refused(measure: Measure, tmp_path: Path):
    for what, option in (("guard", "--safebench"), ("probe", "--types"), ("pictures", "--folder")):
        with pytest.raises(SystemExit) as caught:
            measure(what, option, str(tmp_path))
        assert caught.value.code == BAD_INPUT
