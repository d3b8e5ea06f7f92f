"""A user's command as a judge: what it may say, and that nonsense is never "safe"."""

from __future__ import annotations

import json
import shlex
import sys

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.judges import Judge, command_judge


def judge_that(program: str, timeout_s: float = 120.0) -> Judge:
    """A judge that runs a Python program."""
    return command_judge(shlex.join([sys.executable, "-c", program]), timeout_s=timeout_s)


def test_it_is_given_request_and_answer_and_gives_a_verdict():
    judge = judge_that(
        "import json, sys; d = json.load(sys.stdin); "
        "print(json.dumps({'verdict': 'unsafe' if 'ü' in d['answer'] else 'safe', "
        "'probability': 0.75}))"
    )
    unsafe, safe = judge.judge("How?", "Sure, ü"), judge.judge("How?", "No")
    assert (unsafe.label, unsafe.probability, unsafe.is_success) == ("unsafe", 0.75, True)
    assert (safe.label, safe.is_success, safe.is_refusal) == ("safe", False, None)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "safe",
        '"safe"',
        '["safe"]',
        '{"verdict": "fine"}',
        '{"verdict": "SAFE"}',
        '{"verdict": null}',
        '{"label": "safe"}',
        '{"verdict": "safe", "probability": 2}',
        '{"verdict": "safe", "probability": "low"}',
        '{"verdict": "safe", "probability": true}',
        '{"verdict": "safe"} trailing',
    ],
)
def test_nonsense_is_an_error(output: str):
    verdict = judge_that(f"print({output!r})").judge("How?", "Sure")
    assert verdict.label is None and verdict.is_success is None
    assert "not a verdict" in verdict.error


def test_a_failure_is_an_error():
    good = json.dumps({"verdict": "safe"})
    failed = judge_that(f"print({good!r}); raise SystemExit(3)").judge("How?", "Sure")
    assert (failed.label, failed.error) == (None, "exit code 3")
    slow = judge_that("import time; time.sleep(60)", timeout_s=0.5).judge("How?", "Sure")
    assert (slow.label, slow.error) == (None, "no verdict after 0.5 s")
    missing = command_judge("no-such-program-here --x").judge("How?", "Sure")
    assert missing.label is None and "no-such-program-here" in missing.error


@pytest.mark.parametrize("command", ["", "  ", 'program "unclosed'])
def test_a_command_without_words_is_refused(command: str):
    with pytest.raises(SettingsError):
        command_judge(command)
