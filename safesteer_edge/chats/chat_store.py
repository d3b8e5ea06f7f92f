"""All chats of a user: find, open, fork and delete them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safesteer_edge.chats.chat_file import ChatFile, lock, read_chat
from safesteer_edge.chats.chat_log import MAX_TITLE_CHARACTERS, ChatLog
from safesteer_edge.chats.records import (
    ChatHeader,
    MessageAdded,
    ModelUsed,
    StoredKind,
    StoredMedia,
    TextAdded,
    Titled,
)
from safesteer_edge.errors import ChatFileError, ChatStoreError, os_errors_as
from safesteer_edge.formats.atomic_write import write_whole
from safesteer_edge.formats.user_folders import user_data_folder
from safesteer_edge.media.media_file import read_media_file

# -- pictures, sounds and documents of chats: copies named by their content, for their user alone --

_MAX_BYTES: Final = {"image": 20 << 20, "audio": 128 << 20, "document": 20 << 20}
_SUFFIX: Final = re.compile(r"\.[a-z0-9]{1,5}")
_NAME: Final = re.compile(r"[0-9a-f]{64}(\.[a-z0-9]{1,5})?")
_LOCK_NAME: Final = ".lock"


class MediaFiles:
    """The media folder of a chat store. A file in it is never changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, media: StoredMedia) -> Path:
        """Where a medium lies, whether it is there or not; always inside the folder."""
        names = (name for name in (media.file, media.sha256) if _NAME.fullmatch(name))
        return self._folder / next(names, "lost")

    def has(self, media: StoredMedia) -> bool:
        """Whether it is there, and what it was. Reads it."""
        path = self.path(media)
        try:
            is_in_bounds = path.is_file() and path.stat().st_size <= _MAX_BYTES[media.kind]
            return is_in_bounds and path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            return False

    def add(self, path: Path, kind: StoredKind, name: str = "") -> StoredMedia:
        """Copy a file in, unless it is there. name: what it is called, if not as the file is.

        Raises MediaError, ChatStoreError.
        """
        what = "sound" if kind == "audio" else kind
        data = read_media_file(path, what, max_bytes=_MAX_BYTES[kind])
        remedy = "free some space or make the folder writable"
        with os_errors_as(ChatStoreError, f"cannot keep a copy of {str(path)!r}", remedy):
            sha256 = hashlib.sha256(data).hexdigest()
            suffix = path.suffix.lower()
            file = sha256 + (suffix if _SUFFIX.fullmatch(suffix) else "")
            target = self._folder / file
            if not target.exists():
                write_whole(target, data)
                target.chmod(0o600)
        return StoredMedia(kind, sha256, file, name or path.name)

    def remove_all_but(self, used: Collection[str]) -> None:
        """Delete the files whose names are not among these. Hold the lock."""
        for file in self._folder.iterdir():
            if _NAME.fullmatch(file.name) and file.name not in used:
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, *, shared: bool) -> Iterator[None]:
        """Keep other instances from deleting media (shared), or from adding any."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        problem = f"cannot use the folder {str(self._folder)!r}"
        with os_errors_as(ChatStoreError, problem, "make it writable"):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LOCK_NAME, flags, 0o600)
        try:
            lock(descriptor, shared=shared, wait=True)
            yield
        finally:
            os.close(descriptor)


_ID: Final = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
_MAX_HEADER_BYTES: Final = 1 << 20
_SNIPPET_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """One chat of a list. n_messages: of the branch that is shown.

    problem: why it cannot be read, in which case the rest is what its file's name tells.
    """

    id: str
    title: str
    updated_at: float
    n_messages: int
    model: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A message that has all words. snippet: the text around the first of them."""

    chat: ChatSummary
    entry_id: str
    role: str
    snippet: str


class ChatStore:
    """The chats in a folder; None: the user's own. Making one touches no file."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.media = MediaFiles(self.folder / "media")

    @property
    def folder(self) -> Path:
        """Where the chats lie."""
        return self._folder or user_data_folder() / "chats"

    def path(self, chat_id: str) -> Path:
        """A chat's file. Raises ChatFileError for what is no id."""
        if not _ID.fullmatch(chat_id):
            raise ChatFileError(
                f"{chat_id!r} is not the id of a chat; see 'safesteer-edge chats list'"
            )
        return self.folder / f"{chat_id}.jsonl"

    def find(self, beginning: str) -> str:
        """The id that begins, or ends, like this. Raises ChatFileError if not just one does."""
        ids = [path.stem for path in self._paths()]
        found = [i for i in ids if i == beginning] or [
            i for i in ids if beginning and (i.startswith(beginning) or i.endswith(beginning))
        ]
        if len(found) != 1:
            what = f"{len(found)} chats match" if found else "there is no chat"
            raise ChatFileError(f"{what} {beginning!r}; see 'safesteer-edge chats list'")
        return found[0]

    def create(self, model: ModelUsed | None = None, *, forked_from: str | None = None) -> ChatFile:
        """Begin a new chat's file. Raises ChatStoreError."""
        now_s = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))
        header = ChatHeader(f"{stamp}-{secrets.token_hex(3)}", now_s, model, forked_from)
        with os_errors_as(
            ChatStoreError,
            f"cannot make the folder {str(self.folder)!r}",
            "make it writable, or turn saving off with 'safesteer-edge settings set chats.save "
            "false'",
        ):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return ChatFile.create(self.path(header.id), header)

    def open(self, chat_id: str) -> ChatFile:
        """Go on with a chat. Raises ChatFileError; `read` and `fork` work where it is in use."""
        return ChatFile.open(self.path(chat_id))

    def read(self, chat_id: str) -> ChatLog:
        """A chat, to look at. Raises ChatFileError."""
        return read_chat(self.path(chat_id))

    def fork(self, log: ChatLog, *, end: str | None = None) -> ChatFile:
        """A new chat that begins with the branch up to a message, or to the head."""
        file = self.create(log.model, forked_from=log.header.id)
        for entry in log.branch(end):
            added = MessageAdded(
                entry.id, entry.parent, entry.role, entry.at, entry.text, entry.media
            )
            file.add(added)
            if entry.reasoning:
                file.add(TextAdded(entry.id, entry.reasoning, "reasoning"))
            if entry.end is not None:
                file.add(entry.end)
        file.add(Titled(f"{log.title} (copy)"))
        return file

    def list(self) -> tuple[ChatSummary, ...]:
        """All chats, the latest first; those that cannot be read with their problem."""
        # A file without a whole line: a kill came before its header.
        summaries = [self._summary(path) for path in self._paths() if _is_begun(path)]
        return tuple(sorted(summaries, key=lambda each: each.updated_at, reverse=True))

    def search(self, words: str) -> Iterator[SearchHit]:
        """Messages that have all words, in any case, of all branches, the latest chat first."""
        wanted = _folded(words).split()
        for summary in self.list() if wanted else ():
            if summary.problem is not None:
                continue
            try:
                entries = self.read(summary.id).entries
            except ChatFileError:  # it was deleted, or damaged, just now
                continue
            for entry in entries:
                text = _folded(entry.text)
                if all(word in text for word in wanted):
                    snippet = _snippet(entry.text, text.find(wanted[0]))
                    yield SearchHit(summary, entry.id, entry.role, snippet)

    def rename(self, chat_id: str, title: str) -> None:
        """Give a chat a title. Raises ChatFileError, ChatStoreError."""
        with self.open(chat_id) as file:
            file.add(Titled(checked_title(title)))

    def delete(self, chat_id: str) -> None:
        """Delete a chat, and the media that no other chat uses. Raises ChatFileError."""
        path = self.path(chat_id)
        with self.media.lock(shared=False):
            try:
                with self.open(chat_id):
                    path.unlink()
            except ChatFileError:
                if not path.exists() or not self._summary(path).problem:
                    raise
                with os_errors_as(
                    ChatFileError, f"cannot delete chat {str(path)!r}", "move it away"
                ):
                    path.unlink()  # damaged: nothing is gone with it that could be read
            used = self._used_media()
            if used is not None:
                self.media.remove_all_but(used)

    # -- private ----------------------------------------------------------------------------------

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.glob("*.jsonl") if _ID.fullmatch(path.stem)]

    def _summary(self, path: Path) -> ChatSummary:
        try:
            log = read_chat(path)
        except ChatFileError as error:
            updated_at = path.stat().st_mtime if path.exists() else 0.0
            return ChatSummary(path.stem, "cannot be read", updated_at, 0, None, str(error))
        model = log.model.name if log.model else None
        return ChatSummary(path.stem, log.title, log.updated_at, len(log.branch()), model)

    def _used_media(self) -> set[str] | None:
        """Names of all media of all chats; None: a chat cannot be read, so nobody knows."""
        used: set[str] = set()
        for path in self._paths():
            try:
                entries = read_chat(path).entries
            except ChatFileError:
                return None
            used |= {self.media.path(item).name for entry in entries for item in entry.media}
        return used


def checked_title(title: str) -> str:
    """A title on one line. Raises ChatFileError if it is empty or too long."""
    words = " ".join(title.split())
    if not words or len(words) > MAX_TITLE_CHARACTERS:
        raise ChatFileError(
            f"title has {len(words)} characters; expected 1 to {MAX_TITLE_CHARACTERS}"
        )
    return words


def _is_begun(path: Path) -> bool:
    if not path.is_file():
        return True  # it has a problem, which reading it will name
    try:
        with path.open("rb") as stream:
            return stream.readline(_MAX_HEADER_BYTES).endswith(b"\n")
    except OSError:
        return True


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _snippet(text: str, at: int) -> str:
    start = max(0, at - _SNIPPET_CHARACTERS // 3)
    cut = " ".join(text[start : start + _SNIPPET_CHARACTERS].split())
    return ("…" if start else "") + cut + ("…" if start + _SNIPPET_CHARACTERS < len(text) else "")
