"""The settings screen's command, and what a changed setting does at once."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.session.protocol import TurnSettings

if TYPE_CHECKING:
    from safesteer_edge.session.settings_schema import UserSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


_SAMPLER = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")


async def settings(screen: ChatScreen, _argument: str) -> None:
    """Show all settings."""
    from safesteer_edge.tui.screens.settings_screen import SettingsScreen

    screen.app.push_screen(
        SettingsScreen(screen.user_settings, lambda key, new: check_setting(screen, key, new))
    )


def check_setting(screen: ChatScreen, key: str, new: UserSettings) -> None:
    """Raise SettingsError if the model that is loaded cannot have it."""
    info = screen.state.info
    if key in ("guard.strength", "guard.threshold") and info is not None and info.policy:
        info.policy.tightened(strength=new.guard.strength, threshold=new.guard.threshold)


def applied(settings: TurnSettings, key: str, new: UserSettings) -> TurnSettings:
    """The settings of the next answer after one of the file's was changed."""
    section, _, name = key.partition(".")
    wanted = TurnSettings.of(new.session_settings())
    if section == "sampling" and name in _SAMPLER:
        value = getattr(wanted.sampling, name)
        return replace(settings, sampling=replace(settings.sampling, **{name: value}))
    if key == "sampling.max_tokens":
        return replace(settings, max_tokens=wanted.max_tokens)
    if key == "guard.mode":
        return replace(settings, guard=wanted.guard)
    if section == "guard":
        return replace(settings, **{name: getattr(wanted, name)})
    return settings


def theme_named(name: str) -> str:
    """The theme for a setting; `auto` asks COLORFGBG, which some terminals set."""
    if name == "auto":
        background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
        name = "light" if background in ("7", "15") else "dark"
    return "safesteer-light" if name == "light" else "safesteer-dark"
