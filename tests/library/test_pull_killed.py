"""A pull that is killed at random points, again and again, ends with the right bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from safesteer_edge.library.index import library_folder, read_index
from tests.library.conftest import MODEL, PROJECTOR, REPOSITORY
from tests.library.hub_server import Hub
from tests.tiny_models import write_tiny_llama

N_KILLS = 20
TIMEOUT_S = 120
# One process imports the library once and forks for each pull, so that twenty take seconds.
PROGRAM = """
import os, sys
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
import safesteer_edge.library.pull
from safesteer_edge.cli.main import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(main(["models", "pull", line.strip()]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_pull_that_is_killed_twenty_times_ends_with_the_right_bytes(
    hub: Hub, tmp_path: Path, tiny_projector_path: Path
):
    model = write_tiny_llama(tmp_path / "model.gguf", n_ff=2048).read_bytes()
    hub.put(REPOSITORY, MODEL, model)
    hub.put(REPOSITORY, PROJECTOR, tiny_projector_path.read_bytes())
    hub.chunk_wait_s = 0.5  # from the place on where a pull is to be killed
    rng = random.Random(20)
    n_bytes = len(model) + len(tiny_projector_path.read_bytes())
    starter = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    exit_codes: list[int] = []
    n_kept = 0
    try:
        for _ in range(N_KILLS):
            print(f"hf:{REPOSITORY}", file=starter.stdin, flush=True)
            child = int(starter.stdout.readline())
            hub.wait_after = hub.n_bytes_sent + rng.randrange(n_bytes // 12)
            wait_until(lambda: hub.n_bytes_sent >= hub.wait_after, "more bytes to be sent")
            os.kill(child, signal.SIGKILL)
            exit_codes.append(int(starter.stdout.readline()))
            assert read_index().models == ()
            n_kept, n_kept_before = kept_bytes(), n_kept
            assert n_kept >= n_kept_before
        hub.chunk_wait_s, n_sent = 0.0, hub.n_bytes_sent
        print(f"hf:{REPOSITORY}", file=starter.stdin, flush=True)
        starter.stdout.readline()
        assert int(starter.stdout.readline()) == 0
    finally:
        starter.kill()
        starter.communicate()
    assert exit_codes == [-signal.SIGKILL] * N_KILLS
    (record,) = read_index().models
    assert record.model.path.read_bytes() == model
    assert record.projector is not None
    assert record.projector.path.read_bytes() == tiny_projector_path.read_bytes()
    assert 0 < n_kept < n_bytes
    assert hub.n_bytes_sent - n_sent < n_bytes - n_kept // 2  # the last one asked for the rest
    assert list((library_folder() / ".partial").glob("*.part")) == []


def test_an_interrupt_ends_a_pull_with_one_line_and_keeps_what_came(
    hub: Hub, tiny_llama_path: Path
):
    hub.put(REPOSITORY, MODEL, tiny_llama_path.read_bytes())
    hub.chunk_wait_s, hub.wait_after = 0.5, 100_000  # a minute for the rest
    process = subprocess.Popen(
        [sys.executable, "-m", "safesteer_edge", "models", "pull", f"hf:{REPOSITORY}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: kept_bytes() > 0, "a part of the file")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    # Where it takes long, it has said from time to time how much had come.
    said = [line for line in err.splitlines() if not line.endswith("MiB/s")]
    assert (process.returncode, out, said) == (130, "", ["safesteer-edge: interrupted"])
    assert kept_bytes() > 0
    assert read_index().models == ()


def kept_bytes() -> int:
    """Of the files that have not come whole."""
    partial = (library_folder() / ".partial").glob("*.part")
    return sum(path.stat().st_size for path in partial)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.001)
