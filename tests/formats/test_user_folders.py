"""The user's folders: named, made only on request, and private."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.user_folders import (
    user_cache_folder,
    user_config_folder,
    user_data_folder,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="moves the folders with XDG's variables"
)
ALL = [
    ("XDG_DATA_HOME", user_data_folder),
    ("XDG_CACHE_HOME", user_cache_folder),
    ("XDG_CONFIG_HOME", user_config_folder),
]


@pytest.mark.parametrize(("variable", "folder_of"), ALL)
def test_a_folder_is_made_only_when_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    folder_of: Callable[..., Path],
):
    monkeypatch.setenv(variable, str(tmp_path / "home"))
    assert folder_of() == tmp_path / "home" / "safesteer-edge"
    assert not (tmp_path / "home").exists()
    folder = folder_of(create=True)
    assert folder == folder_of(create=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_a_setting_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match="cannot make the folder"):
        user_data_folder(create=True)
