"""Writing a chat to a file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from safesteer_edge.chats.chat_log import ChatLog
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.export import EXPORT_SUFFIXES, ExportFormat, export_chat
from safesteer_edge.chats.records import StoredMedia
from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write

if TYPE_CHECKING:
    from safesteer_edge.chats.recorded_chat import RecordedChat
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


_MAX_NAME = 40


async def export(screen: ChatScreen, argument: str) -> None:
    """Write the chat that is open. argument: a format, a file, or both."""
    if not screen.state.turns:
        raise InputError("there is nothing to export yet; ask something first")
    to, path = parse_target(argument)

    def work(chat: RecordedChat) -> Path:
        if chat.log is None:
            raise InputError("there is nothing to export yet; ask something first")
        return write_export(chat.log, chat.media_path, to, path)

    written = await asyncio.wrap_future(screen.engine.call(work))
    screen.say(f"wrote {written}")


def parse_target(argument: str) -> tuple[ExportFormat, Path | None]:
    """Format and file of `/export [md|html|json] [FILE]`; the file's ending can say the format."""
    first, _, rest = argument.partition(" ")
    named = _format_named(first)
    name = rest.strip() if named else argument
    path = Path(name).expanduser() if name else None
    by_ending = _format_named(path.suffix[1:]) if path is not None else None
    return named or by_ending or "markdown", path


def export_stored(store: ChatStore, chat_id: str, to: ExportFormat) -> Path:
    """Write a stored chat into the folder that the program runs in; returns the file."""
    return write_export(store.read(chat_id), store.media.path, to, None)


def write_export(
    log: ChatLog,
    media_path: Callable[[StoredMedia], Path],
    to: ExportFormat,
    path: Path | None,
) -> Path:
    """Write a chat; returns the file. path: None makes a name of the title."""
    target = path or _free_name(log.title, EXPORT_SUFFIXES[to])
    try:
        with atomic_write(target, "w") as stream:
            stream.write(export_chat(log, to, media_path=media_path))
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(target)!r}: {error.strerror or error}; give a file in a folder "
            "that exists and is writable"
        ) from error
    return target


def _format_named(name: str) -> ExportFormat | None:
    name = {"md": "markdown"}.get(name, name)
    return next((each for each in get_args(ExportFormat) if each == name), None)


def _free_name(title: str, suffix: str) -> Path:
    words = re.sub(r"[^\w]+", "-", title.casefold()).strip("-")[:_MAX_NAME].strip("-") or "chat"
    path, number = Path(words + suffix), 1
    while path.exists():
        number += 1
        path = Path(f"{words}-{number}{suffix}")
    return path
