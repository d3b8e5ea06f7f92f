"""`safesteer-edge ask` on the tiny model, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.guarded_tiny import QUIET, GuardedTiny

TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it printed."""

    exit_code: int
    out: str
    err: str


Ask = Callable[..., Ran]


def ask_arguments(tiny: GuardedTiny, *arguments: str, bundle: Path | None) -> list[str]:
    """Arguments of `safesteer-edge` that ask the tiny model greedily, on one thread."""
    guard = ["--bundle", str(bundle)] if bundle else []
    usual = ["--threads", "1", "--ctx", "512", "--temperature", "0", "--top-k", "8"]
    return ["ask", "--model", str(tiny.model), *guard, "--max-tokens", "12", *usual, *arguments]


@pytest.fixture
def ask(guarded_tiny: GuardedTiny, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `ask` through `main`; bias: of the probe, see guarded_tiny; bundle: another one."""
    from safesteer_edge.cli.main import main

    def run(*arguments: str, bias: float = QUIET, bundle: Path | None = None) -> Ran:
        chosen = bundle or guarded_tiny.bundle(bias)
        capsys.readouterr()
        exit_code = main(ask_arguments(guarded_tiny, *arguments, bundle=chosen))
        captured = capsys.readouterr()
        return Ran(exit_code, captured.out, captured.err)

    return run


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs `safesteer-edge` with these arguments. stdout: a raw pipe."""

    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def finish(self, stdin: bytes | None = None) -> tuple[bytes, bytes]:
        """What it still has to say on stdout, and all of its stderr."""
        return self.process.communicate(stdin, timeout=TIMEOUT_S)


StartAsk = Callable[..., Running]


@pytest.fixture
def start_ask(guarded_tiny: GuardedTiny) -> StartAsk:
    """Start `python -m safesteer_edge ask` in a process of its own, its streams in raw pipes."""

    def start(
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        stdin: int = subprocess.DEVNULL,
    ) -> Running:
        bundle = guarded_tiny.bundle(QUIET)
        whole = ask_arguments(guarded_tiny, *arguments, bundle=bundle)
        process = subprocess.Popen(
            [sys.executable, "-m", "safesteer_edge", *whole],
            bufsize=0,  # what a test reads before `communicate` is all that it takes
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=start_new_session,
        )
        return Running(tuple(whole), process)

    return start
