"""`safesteer-edge doctor`: its exit codes, its lines and its JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from safesteer_edge.cli.main import main
from safesteer_edge.cli.options import OK, RUNTIME_ERROR
from safesteer_edge.doctor import diagnose
from safesteer_edge.doctor.check import Check, fail, ok, warn

FINE = ok("python", "3.12.1")
SLOW = warn("llama.cpp gpu", "built without CUDA", "pip install it")
BROKEN = fail("guard bundle", "it is damaged", "get it again")


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch):
    """Run the command on these checks."""

    def run(checks: Sequence[Check], *arguments: str) -> int:
        monkeypatch.setattr(diagnose, "diagnose", lambda: iter(checks))
        return main(["doctor", *arguments])

    return run


@pytest.mark.parametrize(
    ("checks", "code"),
    [([FINE], OK), ([FINE, SLOW], OK), ([FINE, BROKEN, SLOW], RUNTIME_ERROR)],
)
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_it_fails_exactly_if_a_check_failed(doctor, checks, code: int, arguments):
    assert doctor(checks, *arguments) == code


def test_a_line_for_each_check_and_one_for_each_remedy(doctor, capsys):
    doctor([FINE, SLOW, BROKEN])
    assert capsys.readouterr().out.splitlines() == [
        "ok    python: 3.12.1",
        "warn  llama.cpp gpu: built without CUDA",
        "      remedy: pip install it",
        "fail  guard bundle: it is damaged",
        "      remedy: get it again",
        "3 checks: 1 failed, 1 with a warning",
    ]


def test_json_is_one_object_alone_on_stdout(doctor, capsys):
    doctor([FINE, BROKEN], "--json")
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "ok": False,
        "checks": [
            {"name": "python", "status": "ok", "finding": "3.12.1", "remedy": None},
            {
                "name": "guard bundle",
                "status": "fail",
                "finding": "it is damaged",
                "remedy": "get it again",
            },
        ],
    }


def test_what_it_quotes_cannot_drive_the_terminal_or_break_its_encoding(
    doctor, monkeypatch: pytest.MonkeyPatch
):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    doctor([ok("default model", "\x1b]0;title\x07'/home/jürgen/m.gguf'")])
    first = raw.getvalue().splitlines()[0]
    assert first == b"ok    default model: '/home/j\\xfcrgen/m.gguf'"


@pytest.mark.default_model
def test_the_installed_command_reports_a_healthy_machine():
    ended = subprocess.run(
        [sys.executable, "-m", "safesteer_edge", "doctor", "--json"], capture_output=True
    )
    report = json.loads(ended.stdout)
    failed = [check for check in report["checks"] if check["status"] == "fail"]
    assert (failed, report["ok"], ended.returncode) == ([], True, OK)
    findings = {check["name"]: check["finding"] for check in report["checks"]}
    assert "answered with" in findings["guarded token"]
    assert "match exact" in findings["guard bundle"]
