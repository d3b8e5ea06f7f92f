"""Two calm themes with one accent colour each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise

from textual.theme import Theme

from safesteer_edge.session.settings_schema import KeysSection

DARK = Theme(
    name="safesteer-dark",
    primary="#56b6a9",
    secondary="#7f8ea3",
    accent="#56b6a9",
    warning="#e5a84b",
    error="#ef6f6c",
    success="#56b6a9",
    foreground="#d9dce3",
    background="#15171c",
    surface="#1c1f26",
    panel="#262a33",
    dark=True,
    variables={"input-cursor-background": "#56b6a9", "border": "#4a505d"},
)
LIGHT = Theme(
    name="safesteer-light",
    primary="#0b6e64",
    secondary="#5b6472",
    accent="#0b6e64",
    warning="#8f5200",
    error="#b3261e",
    success="#0b6e64",
    foreground="#22252b",
    background="#fbfaf7",
    surface="#f2f0ea",
    panel="#e5e2da",
    dark=False,
    variables={"input-cursor-background": "#0b6e64", "border": "#a8a59c"},
)
THEMES = (DARK, LIGHT)


# -- keys as people read them: what the settings name `ctrl+n` is Ctrl+N on the screen -------------

_NAMES = {"escape": "Esc", "pageup": "Page Up", "pagedown": "Page Down"}


def key_label(key: str) -> str:
    """The first of the keys that a setting names, for people."""
    parts = key.split(",")[0].strip().split("+")
    return "+".join(_NAMES.get(part, part[:1].upper() + part[1:]) for part in parts)


def key_labels(keys: KeysSection) -> Mapping[str, str]:
    """The label of every command that has a key in the settings."""
    return {name: key_label(key) for name, key in asdict(keys).items()}


# -- scores as a line of block characters: height says what colour says ----------------------------

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values, one character each; of a longer row, the largest of each group.

    values in [0, 1]; the lowest block is 0.
    """
    if width < 1 or not values:
        return ""
    return "".join(_BLOCKS[min(7, int(value * 8))] for value in grouped(values, width))


def grouped(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: each the largest of as many neighbours as it takes."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [max(values[low:high]) for low, high in pairwise(edges)]
