"""Fonts for pages of text: Pillow's own, and what usual systems bring along."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

# One with serifs, one of typewriter kind: letters of another build than those of Pillow's font.
_CANDIDATES: Final = (
    (
        "/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf",
        "/usr/share/fonts/truetype/liberation/LiberationSerif-Regular.ttf",
        "/usr/share/fonts/liberation-serif/LiberationSerif-Regular.ttf",
        "/System/Library/Fonts/Supplemental/Georgia.ttf",
        "C:/Windows/Fonts/georgia.ttf",
    ),
    (
        "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
        "/usr/share/fonts/truetype/liberation/LiberationMono-Regular.ttf",
        "/usr/share/fonts/liberation-mono/LiberationMono-Regular.ttf",
        "/System/Library/Fonts/Supplemental/Courier New.ttf",
        "C:/Windows/Fonts/cour.ttf",
    ),
)


@cache
def page_fonts() -> tuple[Path | None, ...]:
    """Pillow's font (None), then the first of each kind that this system has."""
    found: list[Path | None] = [None]
    for paths in _CANDIDATES:
        found += [path for path in map(Path, paths) if path.is_file()][:1]
    return tuple(found)
