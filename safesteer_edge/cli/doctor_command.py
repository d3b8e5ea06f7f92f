"""`safesteer-edge doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from safesteer_edge.cli.options import OK, RUNTIME_ERROR, Argument, Command, print_json

if TYPE_CHECKING:
    from safesteer_edge.doctor.check import Check


def run(options: argparse.Namespace) -> int:
    """Examine everything, print each finding, and return the exit code."""
    from safesteer_edge.doctor.diagnose import diagnose

    checks: list[Check] = []
    for check in diagnose():
        checks.append(check)
        if not options.json:
            _print_check(check)
    is_healthy = all(check.status != "fail" for check in checks)
    if options.json:
        print_json({"ok": is_healthy, "checks": [asdict(check) for check in checks]})
    else:
        _print(_summary(checks))
    return OK if is_healthy else RUNTIME_ERROR


def _print_check(check: Check) -> None:
    _print(f"{check.status:<4}  {check.name}: {check.finding}")
    if check.remedy is not None:
        _print(f"      remedy: {check.remedy}")


def _summary(checks: list[Check]) -> str:
    n_failed = sum(check.status == "fail" for check in checks)
    n_warned = sum(check.status == "warn" for check in checks)
    return f"{len(checks)} checks: {n_failed} failed, {n_warned} with a warning"


def _print(line: str) -> None:
    """Print a line that may quote files and native libraries, on a terminal of any encoding."""
    from safesteer_edge.formats.display_text import strip_control_characters

    encoding = sys.stdout.encoding or "utf-8"
    text = strip_control_characters(line).encode(encoding, "backslashreplace").decode(encoding)
    print(text, flush=True)


DOCTOR = Command(
    "doctor",
    "check the installation, up to one guarded token",
    run,
    (Argument("--json", "print one JSON object at the end", action="store_true"),),
    "Check packages, CPU, GPU, folders, memory and the default model, and decode one guarded "
    f"token. Exit {OK} if nothing failed, else {RUNTIME_ERROR}.",
)
