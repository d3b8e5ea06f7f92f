"""Damaged picture files, asked about: an answer or one line, in time and in memory.

SAFESTEER_FUZZ_SCALE=20 pytest tests/session/test_damaged_pictures.py tries twenty times as many.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from safesteer_edge.errors import MediaError
from safesteer_edge.session.session import Session
from tests.formats.mutations import mutants
from tests.guarded_tiny import GuardedTiny
from tests.media.sample_pictures import SAMPLES, write_sample
from tests.session.turns import ask, opened

N_FILES = 1_000 * int(os.environ.get("SAFESTEER_FUZZ_SCALE", "1"))
MAX_GROWTH_KIB = 1 << 20


def damaged_files(folder: Path) -> Iterator[bytes]:
    """Copies of each kind, damaged in the header mostly, and halves of two put together."""
    samples = [write_sample(folder, name).read_bytes() for name in SAMPLES]
    n_each = N_FILES // len(samples) + 1
    for seed, data in enumerate(samples):
        yield from mutants(data, n_each - 5, seed=seed, header_bytes=300)
        rng = Random(seed)
        for other in rng.sample(samples, 5):
            yield data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def peak_kib(process_id: int | str) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def ask_about(session: Session, path: Path) -> bool:
    """Ask; True for an answer, False for one line that says what is wrong with the file."""
    session.reset()
    try:
        turn = ask(session, "What is this?", images=[path])
    except MediaError as error:
        assert "\n" not in str(error)
        assert "damaged.png" in str(error)
        assert "ended the process" not in str(error), path.read_bytes()  # a crash of the decoder
        return False
    assert turn.media[0].n_tokens == 4
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of processes from /proc")
def test_damaged_pictures_end_in_an_answer_or_one_line(guarded_tiny: GuardedTiny, tmp_path: Path):
    path = tmp_path / "damaged.png"
    outcomes: list[bool] = []
    peaks_kib: dict[int, int] = {}
    with opened(guarded_tiny, None, mmproj=guarded_tiny.projector, max_tokens=1) as session:
        write_sample(tmp_path, "rgb.png").rename(path)
        assert ask_about(session, path)
        before_kib = peak_kib("self")
        for data in damaged_files(tmp_path):
            path.write_bytes(data)
            outcomes.append(ask_about(session, path))
            for process in session._runtime.media_decoder._processes.values():
                if process.is_alive:
                    peaks_kib[process.process_id] = peak_kib(process.process_id)
    assert len(outcomes) >= N_FILES
    assert 0.1 < sum(outcomes) / len(outcomes) < 0.9  # the damage is neither nothing nor all
    assert max(peaks_kib.values()) + peak_kib("self") - before_kib < MAX_GROWTH_KIB
