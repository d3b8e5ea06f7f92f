"""Examinations that native code may not survive, each in a process of its own.

An illegal instruction (a wheel built for another CPU), a failed GGML_ASSERT or a driver that
hangs then ends the child, and is a finding like any other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.processes.process_death import death_of

Task = Literal["llama", "driver", "onnxruntime", "bundle", "token"]
Cause = Literal["illegal instruction", "crash", "time limit", "missing module", "error"]

_MAX_QUOTED = 200
Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class ChildFailure:
    """Why a child has nothing to report. is_ours: message is that of one of our own errors."""

    cause: Cause
    message: str
    is_ours: bool = False


def ask_child(task: Task, kind: Callable[..., Facts], *, limit_s: float) -> Facts | ChildFailure:
    """What a new process finds out, or how it failed. Starting one takes some 50 ms.

    kind: the dataclass in `facts.py` that this task reports.
    """
    # Run as a file: `-m` would put the current folder before the standard library.
    command = [sys.executable, str(Path(__file__).with_name("child_main.py"))]
    try:
        ended = subprocess.run(
            [*command, json.dumps(sys.path), task],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except subprocess.TimeoutExpired:
        return ChildFailure("time limit", f"no answer within {limit_s:g} s")
    except OSError as error:
        return ChildFailure("error", f"cannot start {sys.executable!r} ({error.strerror})")
    if ended.returncode != 0:
        return _death(ended.returncode, ended.stderr)
    return _reply(ended.stdout, kind)


def _reply(stdout: bytes, kind: Callable[..., Facts]) -> Facts | ChildFailure:
    # Only the last line is ours: native code may have printed before it.
    reply = cast("dict[str, Any]", json.loads(stdout.splitlines()[-1]))
    if "facts" in reply:
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in reply["facts"].items()
        }
        return kind(**values)
    return ChildFailure(**reply["failure"])


def _death(returncode: int, stderr: bytes) -> ChildFailure:
    """How a process ended that did not reply."""
    death = death_of(returncode)
    cause: Cause = "illegal instruction" if death.cause == "illegal instruction" else "crash"
    lines = stderr.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = f": {strip_control_characters(last)[:_MAX_QUOTED]}" if last else ""
    return ChildFailure(cause, f"the process ended with {death.how}{said}")
