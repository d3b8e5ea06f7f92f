"""What a machine is called, and memory that is measured in a process of its own."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from safesteer_edge.errors import EngineError, SettingsError
from safesteer_edge.evaluation.machine import (
    cpu_name,
    forget_peak_memory,
    measure_in_child,
    peak_memory_bytes,
    read_machine,
)
from safesteer_edge.processes.native_libraries import n_usable_cores

_MIB = 1 << 20


def test_the_processors_name_is_the_one_people_know(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 2\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_name(cpuinfo) == "Some CPU @ 3 GHz"


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path):
    assert cpu_name(tmp_path / "absent")
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 243.75\n")
    assert cpu_name(tmp_path / "arm")


def test_peak_memory_can_begin_anew():
    if peak_memory_bytes() is None or not forget_peak_memory():
        pytest.skip("this system does not tell, or cannot forget")
    before = peak_memory_bytes()
    # Straight from the system: what malloc gets, it may keep.
    with mmap.mmap(-1, 64 * _MIB) as filled:
        for offset in range(0, 64 * _MIB, mmap.PAGESIZE):
            filled[offset] = 1
        with_buffer = peak_memory_bytes()
    assert forget_peak_memory()
    after = peak_memory_bytes()
    assert before is not None and with_buffer is not None and after is not None
    assert with_buffer >= before + 48 * _MIB
    assert after < with_buffer


def test_memory_that_cannot_be_forgotten_is_told_so(tmp_path: Path):
    assert not forget_peak_memory(tmp_path / "absent" / "clear_refs")


def test_peak_memory_is_read_in_bytes(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  999 kB\nVmHWM:\t   2048 kB\n")
    assert peak_memory_bytes(status) == 2 * _MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_in_a_child_is_not_its_parents():
    ballast = bytearray(256 * _MIB)
    own = peak_memory_bytes()
    child = measure_in_child(peak_memory_bytes)
    assert own is not None
    assert child is not None
    assert own > len(ballast)
    assert child < own


def test_an_error_in_the_child_is_raised_here():
    with pytest.raises(SettingsError, match="from the child"):
        measure_in_child(_fail)


def test_a_child_that_dies_is_an_error_with_a_remedy():
    with pytest.raises(EngineError, match="doctor"):
        measure_in_child(os._exit, 9)


def test_the_machine_is_described():
    machine = read_machine()
    assert machine.cpu
    assert machine.n_cores == n_usable_cores() >= 1
    assert machine.versions["llama-cpp-python"]
    assert "CPU" in machine.llama_system_info


def _fail() -> int | None:
    raise SettingsError("from the child")
