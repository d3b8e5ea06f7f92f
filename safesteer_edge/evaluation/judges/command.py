"""A judge of the user's own: a command that reads JSON on stdin and writes JSON on stdout.

It is given {"request": …, "answer": …} and must write {"verdict": "unsafe"} or "safe", "complied",
"refused", "no-answer", and may add {"probability": 0 … 1}. One process an answer.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Final, cast

from safesteer_edge.errors import SettingsError
from safesteer_edge.evaluation.judges.verdict import LABELS, Verdict

DEFAULT_TIMEOUT_S: Final = 60.0
_MAX_OUTPUT: Final = 64 * 1024


class CommandJudge:
    """Runs a command. A time-out, an exit code or nonsense is an error, never a verdict."""

    def __init__(self, command: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Raises SettingsError for a command that has no words."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise SettingsError(f"cannot read the judge's command {command!r}: {error}") from error
        if not self._words:
            raise SettingsError("the judge's command is empty; write command:PROGRAM ARGUMENTS")
        self._timeout_s = timeout_s
        self.name = f"command:{command}"

    def judge(self, request: str, answer: str) -> Verdict:
        """Ask the command about one answer."""
        given = json.dumps({"request": request, "answer": answer})
        try:
            ended = subprocess.run(
                self._words,
                input=given.encode(),
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict(None, error=f"no verdict after {self._timeout_s:g} s")
        except OSError as error:
            return Verdict(None, error=f"cannot run {self._words[0]!r}: {error.strerror or error}")
        if ended.returncode:
            return Verdict(None, error=f"exit code {ended.returncode}")
        return _parsed(ended.stdout)

    def close(self) -> None:
        """Nothing to free."""


def _parsed(output: bytes) -> Verdict:
    nonsense = f"not a verdict: {output[:80]!r}"
    if len(output) > _MAX_OUTPUT:
        return Verdict(None, error=nonsense)
    try:
        value: object = json.loads(output)
    except (ValueError, RecursionError):
        return Verdict(None, error=nonsense)
    if not isinstance(value, dict):
        return Verdict(None, error=nonsense)
    members = cast("dict[str, object]", value)
    probability = members.get("probability")
    for label in LABELS:
        if members.get("verdict") == label:
            if probability is None:
                return Verdict(label)
            is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
            if is_number and 0.0 <= cast("float", probability) <= 1.0:
                return Verdict(label, float(cast("float", probability)))
    return Verdict(None, error=nonsense)
