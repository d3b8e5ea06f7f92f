"""What the engine's process finds around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safesteer_edge.processes.cores import spin_briefly
from safesteer_edge.session.isolated_session import IsolatedSession


def test_threads_spin_briefly():
    environment = {"PATH": "/bin"}
    spin_briefly(environment)
    assert environment["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_a_person_chose_stays(name: str):
    environment = {name: "7"}
    spin_briefly(environment)
    assert environment == {name: "7"}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_engine_finds_it_and_no_secrets(isolated: IsolatedSession):
    environment = Path(f"/proc/{isolated.process_id}/environ").read_bytes()
    assert b"GOMP_SPINCOUNT=" in environment or b"OMP_WAIT_POLICY=" in environment
    assert b"PYTEST_CURRENT_TEST" not in environment
