"""The user's folders: writable or not, and nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safesteer_edge.doctor.check import Check
from safesteer_edge.doctor.diagnose import check_folders

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="moves the folders with XDG's variables"
)


def data_folder_check(monkeypatch: pytest.MonkeyPatch, home: Path) -> Check:
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    checks = check_folders()
    assert [check.name for check in checks] == ["data folder", "cache folder", "config folder"]
    return checks[0]


def test_a_folder_that_can_be_made_is_ok_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    check = data_folder_check(monkeypatch, tmp_path / "new")
    assert check.status == "ok"
    assert "can be created" in check.finding
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "safesteer-edge").mkdir()
    check = data_folder_check(monkeypatch, tmp_path)
    assert check.status == "ok"
    assert check.finding.endswith(", writable")
    assert list((tmp_path / "safesteer-edge").iterdir()) == []


def test_a_file_in_the_way_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "safesteer-edge").write_text("")
    check = data_folder_check(monkeypatch, tmp_path)
    assert check.status == "fail"
    assert "is not a folder" in check.finding


def test_a_folder_that_cannot_be_written_to_fails(monkeypatch: pytest.MonkeyPatch):
    # Not even root can make a file there.
    check = data_folder_check(monkeypatch, Path("/proc/self/fd"))
    assert check.status == "fail"
    assert "cannot be written to" in check.finding
    assert "writable" in str(check.remedy)
