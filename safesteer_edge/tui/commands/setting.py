"""The settings screen's command, and what a changed setting does at once."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.settings_file import known_setting

if TYPE_CHECKING:
    from safesteer_edge.session.settings_schema import UserSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def settings(screen: ChatScreen, _argument: str) -> None:
    """Show all settings."""
    from safesteer_edge.tui.screens.settings_screen import SettingsScreen

    screen.app.push_screen(
        SettingsScreen(screen.user_settings, lambda key, new: check_setting(screen, key, new))
    )


def check_setting(screen: ChatScreen, key: str, new: UserSettings) -> None:
    """Raise SettingsError if the model that is loaded cannot have it."""
    info, session = screen.state.info, new.session
    if key in ("guard.strength", "guard.threshold") and info is not None and info.policy:
        info.policy.tightened(strength=session.strength, threshold=session.threshold)


def applied(settings: TurnSettings, key: str, new: UserSettings) -> TurnSettings:
    """The settings of the next answer after one of the user's was changed."""
    root, name, *inner = known_setting(key).parts
    if root != "session" or not hasattr(settings, name):
        return settings
    value = getattr(new.session, name)
    if inner:  # a field of the sampler: its others stay as the command line has them
        value = replace(getattr(settings, name), **{inner[0]: getattr(value, inner[0])})
    return replace(settings, **{name: value})


def theme_named(name: str) -> str:
    """The theme for a setting; `auto` asks COLORFGBG, which some terminals set."""
    if name == "auto":
        background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
        name = "light" if background in ("7", "15") else "dark"
    return "safesteer-light" if name == "light" else "safesteer-dark"
