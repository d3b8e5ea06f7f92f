"""What the engine finds around it, in its own process and in a program that uses the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safesteer_edge.session.isolated_session import IsolatedSession

_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def _omp_settings(**chosen: str) -> tuple[str, str]:
    """What OpenMP says of itself where a program opens sessions, and the program's variables."""
    kept = {name: value for name, value in os.environ.items() if name not in _CHOICES}
    ran = subprocess.run(
        [sys.executable, "-c", "import os, safesteer_edge as s; s.open_session; print(os.environ)"],
        env={**kept, "OMP_DISPLAY_ENV": "VERBOSE", **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in ran.stderr:
        pytest.skip("llama.cpp's OpenMP here is not GNU's")
    return ran.stderr, ran.stdout


def test_threads_of_a_program_spin_briefly_and_its_environment_stays():
    settings, environment = _omp_settings()
    assert "GOMP_SPINCOUNT = '1000'" in settings
    assert "GOMP_SPINCOUNT" not in environment


@pytest.mark.parametrize("name", _CHOICES)
def test_what_a_person_chose_stays(name: str):
    value = {"GOMP_SPINCOUNT": "7", "OMP_WAIT_POLICY": "ACTIVE"}[name]
    settings, environment = _omp_settings(**{name: value})
    assert f"{name} = '{value}'" in settings
    assert "GOMP_SPINCOUNT = '1000'" not in settings
    assert repr(value) in environment


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_engine_finds_what_was_chosen_and_no_secrets(isolated: IsolatedSession):
    environment = Path(f"/proc/{isolated.process_id}/environ").read_bytes()
    assert any(name.encode() in environment for name in _CHOICES)  # conftest.py's
    assert b"PYTEST_CURRENT_TEST" not in environment
