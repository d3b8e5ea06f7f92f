"""How a child process ended that did not end by itself."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DeathCause = Literal["illegal instruction", "crash", "killed", "exit"]

# NTSTATUS codes that Windows gives as exit codes.
_WINDOWS_CAUSES: Mapping[int, tuple[DeathCause, str]] = {
    0xC000001D: ("illegal instruction", "STATUS_ILLEGAL_INSTRUCTION"),
    0xC0000005: ("crash", "STATUS_ACCESS_VIOLATION"),
    0xC0000409: ("crash", "STATUS_STACK_BUFFER_OVERRUN"),
}
_SIGNAL_CAUSES: Mapping[str, DeathCause] = {
    "SIGILL": "illegal instruction",
    "SIGKILL": "killed",
    "SIGTERM": "killed",
}


@dataclass(frozen=True, slots=True)
class ProcessDeath:
    """how: for people, a signal's name or an exit code."""

    cause: DeathCause
    how: str


def death_of(returncode: int) -> ProcessDeath:
    """What a return code of `subprocess` says, of either system."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return ProcessDeath(_SIGNAL_CAUSES.get(name, "crash"), name)
    known = _WINDOWS_CAUSES.get(returncode & 0xFFFFFFFF)
    return ProcessDeath(*known) if known else ProcessDeath("exit", f"exit code {returncode}")
