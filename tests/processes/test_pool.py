"""Processes that share out work: results, a death, and a parent that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.processes.pool import Died, share_out

_ROOT = Path(__file__).parents[2]


def doubled(items: Sequence[int]) -> Iterator[int]:
    """Twice each; a 7 kills the process, and a negative one is an error."""
    for item in items:
        if item == 7:
            os._exit(3)
        if item < 0:
            raise SettingsError(f"{item} is negative")
        yield 2 * item


def for_minutes(items: Sequence[str]) -> Iterator[str]:
    """Writes its process's id to each file, and is then busy for a minute."""
    for item in items:
        Path(item).write_text(str(os.getpid()))
        time.sleep(60)
        yield item


def test_every_item_has_its_result_whichever_process_does_it():
    assert set(share_out(doubled, [1, 2, 3, 4, 5], n_workers=2)) == {2, 4, 6, 8, 10}


def test_a_death_costs_the_item_that_it_was_at_and_no_other():
    found = list(share_out(doubled, [1, 7, 2, 3], n_workers=1))
    assert found == [2, Died(7, 3), 4, 6]


def test_an_error_of_ours_ends_them_all():
    with pytest.raises(SettingsError, match="-1 is negative"):
        list(share_out(doubled, [1, -1, 2], n_workers=1))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_worker_does_not_outlive_a_parent_that_was_killed(tmp_path: Path):
    told = tmp_path / "pid"
    program = (
        "from safesteer_edge.processes.pool import share_out\n"
        "from tests.processes.test_pool import for_minutes\n"
        f"list(share_out(for_minutes, [{str(told)!r}], n_workers=1))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=_ROOT)
    _wait_until(lambda: told.exists() and told.read_text() != "", 60)
    worker = int(told.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait_until(lambda: not _is_running(worker), 20)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)
