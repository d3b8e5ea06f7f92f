"""Commands that show: help, the inspector, copies of texts, traces, themes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.tui.chat_copy import text_to_copy
from safesteer_edge.tui.themes import DARK, LIGHT
from safesteer_edge.tui.turn_record import TurnRecord
from safesteer_edge.tui.widgets.inspector import Inspector

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def help_(screen: ChatScreen, _argument: str) -> None:
    """Show keys and commands."""
    from safesteer_edge.tui.screens.help_screen import HelpScreen

    screen.app.push_screen(HelpScreen())


async def inspect(screen: ChatScreen, _argument: str) -> None:
    """Open the inspector at the last answer, or close it."""
    records = screen.state.records
    if screen.query_one(Inspector).is_shown:
        close_inspector(screen)
    else:
        show_in_inspector(screen, records[-1] if records else None)


def show_in_inspector(screen: ChatScreen, record: TurnRecord | None) -> None:
    """Show a turn in the inspector."""
    inspector = screen.query_one(Inspector)
    inspector.set_class(True, "-shown")
    screen.set_class(True, "-inspecting")
    info = screen.state.info
    inspector.show_turn(record, info.policy if info else None)
    inspector.scroll_home(animate=False)


def close_inspector(screen: ChatScreen) -> None:
    """Give the room back to the transcript."""
    screen.query_one(Inspector).set_class(False, "-shown")
    screen.set_class(False, "-inspecting")


async def copy(screen: ChatScreen, argument: str) -> None:
    """Copy by OSC 52, which reaches the clipboard over SSH as well."""
    text, what = text_to_copy(screen.state.records, argument)
    screen.app.copy_to_clipboard(text)
    screen.say(f"copied {what}")


async def trace(screen: ChatScreen, argument: str) -> None:
    """Write every step of the last answer, one JSON object a line."""
    record = screen.state.numbered("")
    if not record.steps:
        raise InputError("the last answer has no steps here; regenerate it to have them")
    path = Path(argument or "safesteer-trace.jsonl").expanduser()
    lines = [json.dumps(asdict(step), ensure_ascii=False) + "\n" for step in record.steps]
    try:
        atomic_write(path, "".join(lines).encode())
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(path)!r}: {error.strerror}; give a file in a writable folder"
        ) from error
    screen.say(f"wrote {len(lines)} steps to {path}")


async def theme(screen: ChatScreen, argument: str) -> None:
    """Change between dark and light."""
    if argument not in ("", "dark", "light"):
        raise InputError(f"theme {argument!r}; expected dark or light")
    is_dark = argument == "dark" or (not argument and screen.app.theme != DARK.name)
    screen.app.theme = DARK.name if is_dark else LIGHT.name


async def quit_(screen: ChatScreen, _argument: str) -> None:
    """Leave."""
    screen.app.exit()
