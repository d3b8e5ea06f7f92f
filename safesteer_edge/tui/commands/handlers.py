"""Which function does what a command's name says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from safesteer_edge.tui.commands import asking, attaching, guarding, looking

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen

HANDLERS: dict[str, Callable[[ChatScreen, str], Awaitable[None]]] = {
    "help": looking.help_,
    "inspect": looking.inspect,
    "copy": looking.copy,
    "trace": looking.trace,
    "theme": looking.theme,
    "quit": looking.quit_,
    "regenerate": asking.regenerate,
    "edit": asking.edit,
    "continue": asking.continue_answer,
    "guard": guarding.guard,
    "strength": guarding.strength,
    "threshold": guarding.threshold,
    "temperature": guarding.temperature,
    "seed": guarding.seed,
    "system": guarding.system,
    "attach": attaching.attach,
    "detach": attaching.detach,
}
