"""Commands for the files that go with a message."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def attach(screen: ChatScreen, argument: str) -> None:
    """Add a file to the next message; without one, choose it on a screen."""
    if argument:
        await screen.attached.add([Path(argument.strip("'\"")).expanduser()])
        return
    from safesteer_edge.tui.screens.picture_picker import PicturePicker

    def chosen(path: Path | None) -> None:
        if path is not None:
            screen.run_worker(screen.attached.add_or_complain([path]))

    screen.app.push_screen(PicturePicker(Path.cwd()), chosen)


async def detach(screen: ChatScreen, argument: str) -> None:
    """Take one file off again, or all."""
    attachments = screen.state.attachments
    if not attachments:
        raise InputError("nothing is attached; /attach FILE adds one")
    if argument == "all":
        attachments.clear()
        await screen.attached.show()
        return
    number = argument or str(len(attachments))
    if not number.isdecimal() or not 1 <= int(number) <= len(attachments):
        raise InputError(f"attachment {argument!r}; expected 1 to {len(attachments)}, or all")
    await screen.attached.take_off(int(number) - 1)
