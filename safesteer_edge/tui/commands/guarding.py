"""Commands that set how the next answer is guarded, drawn and begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.slash_commands import changed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from safesteer_edge.tui.screens.chat_screen import ChatScreen


def turn_command(name: str) -> Callable[[ChatScreen, str], Awaitable[None]]:
    """The handler of a command of `turn_commands`."""

    async def handle(screen: ChatScreen, argument: str) -> None:
        state = screen.state
        state.settings, sentence = changed(name, argument, state.settings, state.info)
        screen.show_bars()
        screen.say(sentence)

    return handle


async def system(screen: ChatScreen, argument: str) -> None:
    """Set the chat's system prompt; without an argument, show it."""
    state = screen.state
    if not argument:
        screen.say(f"system prompt: {state.system or 'none'}")
        return
    if state.turns:
        raise InputError("a system prompt can only begin a chat; /new begins one")
    state.system = None if argument in ("none", "off") else argument
    screen.say(f"this chat's system prompt: {state.system or 'none'}")
