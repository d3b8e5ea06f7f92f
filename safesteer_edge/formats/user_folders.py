"""The user's own folders for this program: the only file that imports platformdirs.

Linux: ~/.local/share, ~/.cache and ~/.config, or where the XDG variables point; the customary
places on macOS and Windows.
"""

from __future__ import annotations

from pathlib import Path

from safesteer_edge.errors import SettingsError

_NAME = "safesteer-edge"


def user_data_folder(inner: str = "", *, create: bool = False) -> Path:
    """The folder of what must last: models, guard bundles, conversations.

    inner: a folder in it. create: make it if it is missing. Raises SettingsError if that fails.
    """
    import platformdirs

    return _made(platformdirs.user_data_path(_NAME, appauthor=False) / inner, create=create)


def user_cache_folder(inner: str = "", *, create: bool = False) -> Path:
    """The folder of what can be made again; as `user_data_folder`."""
    import platformdirs

    return _made(platformdirs.user_cache_path(_NAME, appauthor=False) / inner, create=create)


def user_config_folder(*, create: bool = False) -> Path:
    """The folder of what the user sets; as `user_data_folder`."""
    import platformdirs

    return _made(platformdirs.user_config_path(_NAME, appauthor=False), create=create)


def _made(folder: Path, *, create: bool) -> Path:
    if not create:
        return folder
    try:
        # Conversations are private: nobody else reads a folder that we make.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"cannot make the folder {str(folder)!r}: {error.strerror or error}; make it "
            "writable, or see 'safesteer-edge doctor'"
        ) from error
    return folder
