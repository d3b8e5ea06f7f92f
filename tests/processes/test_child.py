"""A child is told apart by what it does: it answers, is late, dies, or is forgotten."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from safesteer_edge.processes.child import Child, ProcessDeath

START_S = 60.0  # a cold disk may be slow


def started(after_s: float = 0.0) -> Child:
    return Child(
        "tests.processes.children:echo",
        {"after_s": after_s},
        environment=os.environ,
        log_filter=str.upper,
    )


def asked(child: Child, word: bytes, limit_s: float) -> bytes:
    with child.within(limit_s):
        child.stdin.write(word + b"\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise EOFError
        return line.strip()


def test_it_answers_one_thing_after_another_and_what_it_prints_is_its_log():
    child = started()
    assert [asked(child, word, START_S) for word in (b"one", b"two")] == [b"one", b"two"]
    assert child.is_alive
    child.close(START_S)
    child.close()
    assert not child.is_alive
    assert list(child.log) == ["SAID ON STDOUT"]


def test_a_late_answer_ends_it_whatever_limit_was_set_before():
    child = started(after_s=0.5)
    assert asked(child, b"one", START_S) == b"one"
    with pytest.raises(TimeoutError, match=r"no reply within 0\.1 s"):
        asked(child, b"two", 0.1)
    assert child.death().cause == "killed"


def test_a_death_is_told_by_how_it_ended():
    child = started()
    with pytest.raises(EOFError):
        asked(child, b"die", START_S)
    assert child.death() == ProcessDeath("exit", "exit code 7")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_one_that_is_forgotten_ends():
    child = started()
    assert asked(child, b"one", START_S) == b"one"
    process = Path(f"/proc/{child.process_id}")
    del child
    gc.collect()
    limit_s = time.monotonic() + START_S
    while process.exists():
        assert time.monotonic() < limit_s, f"waited for {process} to end"
        time.sleep(0.02)
