"""`safesteer-edge doctor`: what is wrong with an installation, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from safesteer_edge.cli.options import OK, RUNTIME_ERROR, Argument, Command, print_result
from safesteer_edge.formats.display_text import strip_control_characters

if TYPE_CHECKING:
    from safesteer_edge.doctor.check import Check


def run(options: argparse.Namespace) -> int:
    """Examine everything, print each finding as it comes, and return the exit code."""
    from safesteer_edge.doctor.diagnose import diagnose

    checks: list[Check] = []
    for check in diagnose():
        checks.append(check)
        if not options.json:
            lines = [f"{check.status:<4}  {check.name}: {check.finding}"]
            if check.remedy is not None:
                lines.append(f"      remedy: {check.remedy}")
            # They may quote files and native libraries.
            print("\n".join(map(strip_control_characters, lines)), flush=True)
    n_failed = sum(check.status == "fail" for check in checks)
    n_warned = sum(check.status == "warn" for check in checks)
    print_result(
        options,
        {"ok": not n_failed, "checks": [asdict(check) for check in checks]},
        [f"{len(checks)} checks: {n_failed} failed, {n_warned} with a warning"],
    )
    return RUNTIME_ERROR if n_failed else OK


DOCTOR = Command(
    "doctor",
    "check the installation",
    run,
    (Argument("--json", "print one JSON object at the end", action="store_true"),),
    "Check packages, CPU, GPU, folders, memory and the default model, and generate one guarded "
    f"token. Exit with {OK} if nothing failed, else {RUNTIME_ERROR}.",
)
