"""Which function does what a command's name says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from safesteer_edge.tui.commands import (
    asking,
    attaching,
    chats,
    exporting,
    guarding,
    looking,
    modelling,
    setting,
)
from safesteer_edge.tui.slash_commands import TURN_COMMANDS

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


HANDLERS: dict[str, Callable[[ChatScreen, str], Awaitable[None]]] = {
    "help": looking.help_,
    "inspect": looking.inspect,
    "copy": looking.copy,
    "trace": looking.trace,
    "thoughts": looking.thoughts,
    "theme": looking.theme,
    "quit": looking.quit_,
    "regenerate": asking.regenerate,
    "edit": asking.edit,
    "continue": asking.continue_answer,
    **{name: guarding.turn_command(name) for name in TURN_COMMANDS},
    "system": guarding.system,
    "new": chats.new,
    "chats": chats.chats,
    "fork": chats.fork,
    "rename": chats.rename,
    "export": exporting.export,
    "settings": setting.settings,
    "models": modelling.models,
    "model": modelling.model,
    "compare": modelling.compare,
    "attach": attaching.attach,
    "detach": attaching.detach,
}
