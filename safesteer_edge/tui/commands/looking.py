"""Commands that show: help, the inspector, copies of texts, traces, themes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.chat_copy import text_to_copy, write_trace
from safesteer_edge.tui.looks import DARK, LIGHT, key_labels
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.inspector import Inspector
from safesteer_edge.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def help_(screen: ChatScreen, _argument: str) -> None:
    """Show keys and commands."""
    from safesteer_edge.tui.screens.boxes import HelpScreen

    screen.app.push_screen(HelpScreen(key_labels(screen.user_settings.keys)))


async def inspect(screen: ChatScreen, _argument: str) -> None:
    """Open the inspector at the last answer, or close it."""
    turns = screen.state.turns
    if screen.query_one(Inspector).is_shown:
        close_inspector(screen)
    else:
        show_in_inspector(screen, turns[-1] if turns else None)


async def thoughts(screen: ChatScreen, _argument: str) -> None:
    """Open the reasoning of the last answer, or close it."""
    turn = screen.state.numbered("")
    view = screen.query_one(Transcript).view_of(turn)
    if not turn.reasoning or view is None:
        raise InputError("the model did not think before its last answer")
    view.action_thoughts()


def show_in_inspector(screen: ChatScreen, turn: ShownTurn | None) -> None:
    """Show a turn in the inspector."""
    inspector = screen.query_one(Inspector)
    inspector.set_class(True, "-shown")
    screen.set_class(True, "-inspecting")
    inspector.show_turn(turn)
    inspector.scroll_home(animate=False)


def close_inspector(screen: ChatScreen) -> None:
    """Give the room back to the transcript."""
    screen.query_one(Inspector).set_class(False, "-shown")
    screen.set_class(False, "-inspecting")


async def copy(screen: ChatScreen, argument: str) -> None:
    """Copy by OSC 52, which reaches the clipboard over SSH as well."""
    text, what = text_to_copy(screen.state.turns, argument)
    screen.app.copy_to_clipboard(text)
    screen.say(f"copied {what}")


async def trace(screen: ChatScreen, argument: str) -> None:
    """Write every step of the last answer, one JSON object a line."""
    path, n_steps = write_trace(screen.state.numbered(""), argument)
    screen.say(f"wrote {n_steps} steps to {path}")


async def theme(screen: ChatScreen, argument: str) -> None:
    """Change between dark and light."""
    if argument not in ("", "dark", "light"):
        raise InputError(f"theme {argument!r}; expected dark or light")
    is_dark = argument == "dark" or (not argument and screen.app.theme != DARK.name)
    screen.app.theme = DARK.name if is_dark else LIGHT.name


async def quit_(screen: ChatScreen, _argument: str) -> None:
    """Leave."""
    screen.app.exit()
