"""Available memory, from files as Linux shows them, against what the default model needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.diagnose import check_memory

MIB = 1 << 20
MODEL_BYTES = 94 * MIB


@pytest.fixture
def available(tmp_path: Path):
    """Check a machine with this much available, and what its control group says."""

    def check(n_mib: int, *, limit: str = "max", used_mib: int = 0) -> Check:
        meminfo = tmp_path / "meminfo"
        meminfo.write_text(f"MemTotal: 9 kB\nMemAvailable:   {n_mib * 1024} kB\n")
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(str(used_mib * MIB))
        (found,) = check_memory(MODEL_BYTES, meminfo=meminfo, cgroup=tmp_path)
        return found

    return check


def test_plenty_is_ok(available):
    check = available(4096)
    assert check.status == "ok"
    assert check.finding == "4096 MiB available; the default model needs about 508 MiB"


def test_less_than_the_need_is_a_warning(available):
    check = available(300)
    assert check.status == "warn"
    assert "--ctx" in str(check.remedy)


def test_less_than_the_weights_fails(available):
    assert available(60).status == "fail"


def test_a_control_groups_limit_counts(available):
    check = available(4096, limit=str(256 * MIB), used_mib=196)
    assert check.status == "fail"
    assert "60 MiB left in this control group" in check.finding


def test_the_size_of_the_model_may_be_unknown(tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 1024 kB\n")
    (check,) = check_memory(None, meminfo=meminfo, cgroup=tmp_path)
    assert (check.status, check.finding) == ("ok", "1 MiB available")


def test_without_meminfo_all_that_is_built_in_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if os.name == "nt":
        pytest.skip("stands in for sysctl with a shell script")
    program = tmp_path / "sysctl"
    program.write_text('#!/bin/sh\n[ "$2" = hw.memsize ] && echo 8589934592\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (check,) = check_memory(MODEL_BYTES, meminfo=tmp_path / "missing", cgroup=tmp_path)
    assert check.status == "ok"
    assert check.finding.startswith("8192 MiB built in")


def test_where_nothing_is_known_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = check_memory(MODEL_BYTES, meminfo=tmp_path / "missing", cgroup=tmp_path)
    assert check.status == "ok"
    assert "not known" in check.finding
