"""The installed command with the embedded default model and its guard."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it printed."""

    exit_code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def safesteer_edge(*arguments: str, stdin: str | None = None) -> Ran:
    """Run `safesteer-edge` in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "safesteer_edge", *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)
