"""The user's own folders for this program: the only file that imports platformdirs.

Linux: ~/.local/share, ~/.cache and ~/.config, or where the XDG variables point; the customary
places on macOS and Windows.
"""

from __future__ import annotations

from pathlib import Path

from safesteer_edge.errors import SettingsError, os_errors_as

_NAME = "safesteer-edge"


def user_data_folder(inner: str = "", *, create: bool = False) -> Path:
    """The folder of what must last: models, guard bundles, conversations.

    inner: a folder in it. create: make it if it is missing. Raises SettingsError if that fails.
    """
    import platformdirs

    return _inside(platformdirs.user_data_path(_NAME, appauthor=False), inner, create=create)


def user_cache_folder(inner: str = "", *, create: bool = False) -> Path:
    """The folder of what can be made again; as `user_data_folder`."""
    import platformdirs

    return _inside(platformdirs.user_cache_path(_NAME, appauthor=False), inner, create=create)


def user_config_folder(*, create: bool = False) -> Path:
    """The folder of what the user sets; as `user_data_folder`."""
    import platformdirs

    return _inside(platformdirs.user_config_path(_NAME, appauthor=False), "", create=create)


def made_folder(folder: Path) -> Path:
    """Make a folder, for its user alone, if it is missing. Raises SettingsError."""
    remedy = "make it writable, or see 'safesteer-edge doctor'"
    with os_errors_as(SettingsError, f"cannot make the folder {str(folder)!r}", remedy):
        # Conversations are private: nobody else reads a folder that we make.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _inside(folder: Path, inner: str, *, create: bool) -> Path:
    if create:
        made_folder(folder)  # with our mode, which parents of a folder that is made do not get
        made_folder(folder / inner)
    return folder / inner
