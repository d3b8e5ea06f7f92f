"""A file is the old one or the new one, never half of it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from safesteer_edge.formats.atomic_write import atomic_write


def test_a_new_file_holds_what_was_written(tmp_path: Path):
    path = tmp_path / "new.bin"
    with atomic_write(path, "wb") as file:
        file.write(b"one")
        file.write(b"two")
        assert not path.exists()
    assert path.read_bytes() == b"onetwo"


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path):
    path = tmp_path / "new.txt"
    with atomic_write(path, "w") as file:
        file.write("λ\nτ\n")
    assert path.read_bytes() == "λ\nτ\n".encode()


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "old.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "new.bin"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_no_temporary_file(tmp_path: Path):
    folder = tmp_path / "a folder is in the way"
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(OSError), atomic_write(folder) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are another thing there")
def test_permissions_of_the_old_file_are_kept_and_new_ones_follow_the_umask(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"")
    old.chmod(0o640)
    previous = os.umask(0o027)
    try:
        for path in (old, new):
            with atomic_write(path) as file:
                file.write(b"x")
    finally:
        os.umask(previous)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o640, 0o640]
    old.chmod(0o600)
    with atomic_write(old) as file:
        file.write(b"y")
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
