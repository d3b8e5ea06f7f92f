"""Package metadata on disk, as pip leaves it, for tests that need other versions installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_dist_info(
    site_packages: Path, name: str, version: str, *, requires: Sequence[str] = ()
) -> None:
    """Make `name` look installed in this folder."""
    folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
