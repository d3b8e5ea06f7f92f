"""What the chat's parts tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from safesteer_edge.tui.engine_thread import Told
    from safesteer_edge.tui.shown_turn import ShownTurn
    from safesteer_edge.user_settings.schema import UserSettings


@dataclass
class EngineTold(Message):
    """The engine's thread says something. told: what."""

    told: Told


@dataclass
class Submitted(Message):
    """The person sends the input. text: as typed."""

    text: str


@dataclass
class PathsDropped(Message):
    """Files were pasted or dropped into the input. paths: they exist."""

    paths: tuple[Path, ...]


@dataclass
class ClipboardWanted(Message):
    """The person pastes. text: what the terminal or the application has for it; empty: nothing."""

    text: str


@dataclass
class LastAttachmentErased(Message):
    """Backspace in an empty input: the last attachment goes."""


@dataclass
class CompletionsWanted(Message):
    """The input begins with a slash. text: all of it; empty: no longer."""

    text: str


@dataclass
class TurnAction(Message):
    """The person wants something done with a turn. action: a slash command's name."""

    action: str
    turn: ShownTurn


@dataclass
class SettingChanged(Message):
    """A setting of the file has a new value. key: `section.name`."""

    key: str
    settings: UserSettings
