"""Commands for the files that go with a message."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError, MediaError
from safesteer_edge.tui.typed_paths import is_media, is_sound
from safesteer_edge.tui.widgets.composer import Composer

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def attach(screen: ChatScreen, argument: str) -> None:
    """Add a file to the next message; without one, choose it on a screen."""
    if argument:
        await screen.attach([Path(argument.strip("'\"")).expanduser()])
        return
    from safesteer_edge.tui.screens.picture_picker import PicturePicker

    def chosen(path: Path | None) -> None:
        if path is not None:
            screen.run_worker(screen.attach_or_complain([path]))

    screen.app.push_screen(PicturePicker(Path.cwd()), chosen)


async def paste(screen: ChatScreen, text: str) -> None:
    """Attach the picture that the clipboard holds, else put the text in."""
    try:
        picture = await asyncio.to_thread(screen.clipboard_pictures.take)
    except MediaError:
        if not text:
            raise
        picture = None
    if picture is not None:
        await screen.attach([picture])
    elif text:
        screen.query_one(Composer).insert(text)


async def detach(screen: ChatScreen, argument: str) -> None:
    """Take one file off again, or all."""
    attachments = screen.state.attachments
    if not attachments:
        raise InputError("nothing is attached; /attach FILE adds a picture")
    if argument == "all":
        attachments.clear()
        await screen.attach([])
        return
    number = argument or str(len(attachments))
    if not number.isdecimal() or not 1 <= int(number) <= len(attachments):
        raise InputError(f"attachment {argument!r}; expected 1 to {len(attachments)}, or all")
    await screen.detach(int(number) - 1)


def check_attachment(screen: ChatScreen, path: Path) -> None:
    """Raise MediaError for a file that cannot go with a message, as far as can be told at once."""
    name = repr(str(path))
    if not path.is_file():
        raise MediaError(f"cannot attach {name}: there is no such file; check the path")
    if not is_media(path):
        raise MediaError(
            f"cannot attach {name}: neither picture (PNG, JPEG, WebP, GIF, BMP, TIFF) nor sound "
            "(WAV, FLAC, MP3); convert it first"
        )
    info = screen.state.info
    if info is None:
        return
    if is_sound(path) and not info.hears:
        raise MediaError(f"{info.model_name} does not hear; choose a model that does (/models)")
    if not is_sound(path) and not info.sees:
        raise MediaError(
            f"{info.model_name} does not see as it is loaded; choose a model that does (/models)"
        )
