"""Whether the user's folders can be written to; nothing is left behind in them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safesteer_edge.diagnosis.check import Check, fail, ok
from safesteer_edge.folders import user_cache_folder, user_config_folder, user_data_folder


def check_folders() -> list[Check]:
    """One check for each of the data, cache and configuration folders."""
    return [
        _check_folder("data folder", user_data_folder()),
        _check_folder("cache folder", user_cache_folder()),
        _check_folder("config folder", user_config_folder()),
    ]


def _check_folder(name: str, folder: Path) -> Check:
    """A folder that is not there yet is fine if it can be made."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        return fail(name, f"{str(existing)!r} is not a folder", f"move {str(existing)!r} away")
    try:
        # Permission bits say little (root, read-only mounts, access lists): try, and leave nothing.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return fail(
            name,
            f"{str(existing)!r} cannot be written to ({error.strerror})",
            f"make {str(existing)!r} writable for this user",
        )
    note = "writable" if existing == folder else "not there yet, and can be made"
    return ok(name, f"{str(folder)!r}, {note}")
