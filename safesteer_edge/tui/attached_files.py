"""The files that go with the next message: added, taken off, shown over the input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.errors import MediaError, SafeSteerError
from safesteer_edge.tui.attachable import check_attachable
from safesteer_edge.tui.clipboard_picture import ClipboardPictures
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
        """Add files, all or none. Raises MediaError at the first that cannot go with a message."""
        state = self._screen.state
        for path in paths:
            await asyncio.to_thread(check_attachable, path, state.info)
        state.attachments += [path for path in paths if path not in state.attachments]
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
