"""What Enter in the input does: a command, files to attach, or a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safesteer_edge.errors import SafeSteerError
from safesteer_edge.tui.commands import asking
from safesteer_edge.tui.commands.handlers import HANDLERS
from safesteer_edge.tui.slash_commands import parse_command
from safesteer_edge.tui.typed_paths import require_files, split_media_paths
from safesteer_edge.tui.widgets.composer import Composer

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def submit(screen: ChatScreen, typed: str) -> None:
    """Send a message, or obey a command. Raises SafeSteerError; what was typed stays then."""
    composer = screen.query_one(Composer)
    command = parse_command(typed)
    if command is not None:
        composer.text = ""
        try:
            await HANDLERS[command[0].name](screen, command[1])
        except SafeSteerError:
            composer.replace_text(typed)  # to be mended
            raise
        composer.remember(typed.strip())
        return
    text, paths = split_media_paths(typed, typed=True)
    require_files(paths)
    is_asked = bool(text.strip()) or not paths  # a path alone attaches; the question comes next
    if is_asked:
        if not text.strip() and not screen.state.attachments:
            return
        asking.check_idle(screen)
    composer.text = ""
    try:
        await screen.attached.add(paths)  # may take its time, and typing goes on
    except SafeSteerError:
        composer.replace_text(typed + composer.text)
        raise
    if not is_asked:
        return
    composer.remember(typed)
    await asking.send(screen, text.strip())
