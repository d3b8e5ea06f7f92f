"""Keys as people read them: what the settings name `ctrl+n` is Ctrl+N on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from safesteer_edge.user_settings.schema import KeysSection

_NAMES = {"escape": "Esc", "pageup": "Page Up", "pagedown": "Page Down"}


def key_label(key: str) -> str:
    """The first of the keys that a setting names, for people."""
    parts = key.split(",")[0].strip().split("+")
    return "+".join(_NAMES.get(part, part[:1].upper() + part[1:]) for part in parts)


def key_labels(keys: KeysSection) -> Mapping[str, str]:
    """The label of every command that has a key in the settings."""
    return {name: key_label(key) for name, key in asdict(keys).items()}
