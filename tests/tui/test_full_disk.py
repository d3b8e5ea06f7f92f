"""A disk that takes no more: a sentence with a remedy, and the chat goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from safesteer_edge.chats import chat_file
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.errors import ChatStoreError
from tests.tui.app_driver import driven, opened


class Disk:
    """The disk under the chats: while it is full, a write takes half of what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._write = os.write
        monkeypatch.setattr(chat_file.os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.is_full and data.startswith(b'{"'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data)


def test_a_full_disk_is_told_and_what_was_said_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    disk = Disk(monkeypatch)
    store = ChatStore(tmp_path / "chats")

    async def test():
        async with opened(store=store) as driver:
            await driver.send("before")
            await driver.ready()
            disk.is_full = True
            await driver.send("without room")
            await driver.sees("You said: without room")
            await driver.sees("this chat is not being saved: cannot save chat")
            await driver.sees("free some space or make the")
            await driver.ready()
            disk.is_full = False
            await driver.send("with room")
            await driver.sees("You said: with room")
            await driver.ready()
        (chat,) = store.list()
        texts = [entry.text for entry in store.read(chat.id).branch() if entry.role == "user"]
        assert texts == ["before", "without room", "with room"]

    driven(test())


def test_a_store_that_takes_no_chat_is_told_and_the_chat_goes_on_unsaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = ChatStore(tmp_path / "chats")

    def refuse(*_: object, **__: object) -> None:
        raise ChatStoreError("cannot make a chat in 'chats': read-only; make it writable")

    monkeypatch.setattr(store, "create", refuse)

    async def test():
        async with opened(store=store) as driver:
            await driver.send("hello")
            await driver.sees("this chat is not being saved: cannot make a chat in 'chats'")
            await driver.sees("You said: hello")
            await driver.send("again")
            await driver.sees("You said: again")
            assert store.list() == ()

    driven(test())
