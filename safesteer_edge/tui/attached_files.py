"""The files that go with the next message: added, taken off, shown over the input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import MediaError, SafeSteerError
from safesteer_edge.tui.clipboard_picture import ClipboardPictures
from safesteer_edge.tui.typed_paths import is_media, is_sound
from safesteer_edge.tui.widgets.attachment_bar import AttachmentBar
from safesteer_edge.tui.widgets.composer import Composer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safesteer_edge.tui.screens.chat_screen import ChatScreen


class AttachedFiles:
    """Of the chat's screen, whose state holds their paths."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._clipboard_pictures = ClipboardPictures()

    async def add(self, paths: Sequence[Path]) -> None:
        """Add files. Raises MediaError at the first that cannot go with a message."""
        for path in paths:
            self._check(path)
            self._screen.state.attachments.append(path)
        await self.show()

    async def add_or_complain(self, paths: Sequence[Path]) -> None:
        """The same where nobody waits for the error."""
        try:
            await self.add(paths)
        except SafeSteerError as error:
            self._screen.complain(str(error))

    async def take_off(self, index: int) -> None:
        """Take a file off again; -1: the last. Nothing where there is none."""
        attachments = self._screen.state.attachments
        if attachments[index : index + 1 or None]:
            del attachments[index]
            await self.show()

    async def show(self) -> None:
        """Show those that the state holds."""
        await self._screen.query_one(AttachmentBar).show(self._screen.state.attachments)

    async def paste(self, text: str) -> None:
        """Add the picture that the clipboard holds, else put the text into the input.

        The tool that reads the clipboard may take its time.
        """
        try:
            picture = await asyncio.to_thread(self._clipboard_pictures.take)
        except MediaError as error:
            if not text:
                self._screen.complain(str(error))
            picture = None
        if picture is not None:
            await self.add_or_complain([picture])
        elif text:
            self._screen.query_one(Composer).insert_paste(text)

    def _check(self, path: Path) -> None:
        """Raise MediaError for a file that cannot go, as far as can be told at once."""
        name = repr(str(path))
        if not path.is_file():
            raise MediaError(f"cannot attach {name}: there is no such file; check the path")
        if not is_media(path):
            raise MediaError(
                f"cannot attach {name}: neither picture (PNG, JPEG, WebP, GIF, BMP, TIFF) nor "
                "sound (WAV, FLAC, MP3); convert it first"
            )
        info = self._screen.state.info
        if info is None:
            return
        if is_sound(path) and not info.hears:
            raise MediaError(f"{info.model_name} does not hear; choose a model that does (/models)")
        if not is_sound(path) and not info.sees:
            raise MediaError(
                f"{info.model_name} does not see as it is loaded; choose a model that does "
                "(/models)"
            )
