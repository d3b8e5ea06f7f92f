"""Two calm themes with one accent colour each."""

from __future__ import annotations

from textual.theme import Theme

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
