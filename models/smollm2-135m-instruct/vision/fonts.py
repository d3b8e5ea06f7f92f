"""The fonts to read: those that fontconfig lists for English, split by family."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Literal

from PIL import ImageFont

_LETTERS = "ABCXYZabcgxyz0129"
_NOT_FOR_TEXT = ("symbol", "emoji", "dingbat", "music", "math", "icon", "braille", "humor sans")


def find_fonts(split: Literal["train", "test"]) -> list[Path]:
    """Font files of a split, in order of name; one family in eight is held out.

    FreeMono is always for training: FigStep's attack images are set in it, and held-out
    *sentences* are what those measure. Needs `fc-list` (Debian: fontconfig).
    """
    listed = subprocess.run(
        ["fc-list", ":lang=en", "file", "family"], capture_output=True, text=True, check=True
    ).stdout
    chosen: list[Path] = []
    for row in sorted(listed.splitlines()):
        file, _, family = row.partition(": ")
        family = family.split(",")[0].strip()
        path = Path(file)
        if path.suffix.lower() not in (".ttf", ".otf") or _is_unfit(path, family):
            continue
        held_out = "freemono" not in family.lower() and _bucket(family) == 0
        if held_out == (split == "test"):
            chosen.append(path)
    if not chosen:
        raise SystemExit("no fonts found; install those that the model card lists")
    return chosen


def _bucket(family: str) -> int:
    stem = " ".join(family.split()[:2]).lower()  # "DejaVu Sans Mono" goes with "DejaVu Sans"
    return hashlib.sha256(stem.encode()).digest()[0] % 8


def _is_unfit(path: Path, family: str) -> bool:
    if (
        any(word in family.lower() for word in _NOT_FOR_TEXT)
        or "Noto Sans " in family
        or "Noto Serif " in family
    ):
        return True  # Noto's other scripts have no Latin letters, or the same ones
    try:
        font = ImageFont.truetype(str(path), 24)
        boxes = {font.getmask(letter).getbbox() for letter in _LETTERS}
    except OSError:
        return True
    return len(boxes) < len(_LETTERS) // 2  # missing letters are all one box
