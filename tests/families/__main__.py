"""Proves the engine on every family and writes docs/families.md: `python -m tests.families`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safesteer_edge.formats.atomic_write import atomic_write
from tests.families.table import TABLE_PATH, prove_all, render


def main() -> None:
    """Run all proofs; the page is left alone if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        page = render(prove_all(Path(folder)))
    with atomic_write(TABLE_PATH, "w") as stream:
        stream.write(page)
    print(f"wrote {TABLE_PATH}")


if __name__ == "__main__":
    main()
