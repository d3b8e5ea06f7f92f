"""The chat that a session is in: its records, saved where they can be, and its media."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from safesteer_edge.chats.chat_file import ChatFile
from safesteer_edge.chats.chat_log import ChatEntry, ChatLog, is_summed_up
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.records import (
    AnswerEnded,
    ChatHeader,
    HeadMoved,
    MessageAdded,
    MessageDropped,
    ModelUsed,
    Record,
    StoredKind,
    StoredMedia,
    TextAdded,
)
from safesteer_edge.errors import ChatStoreError, EngineDiedError, SafeSteerError
from safesteer_edge.guard.events import Event, Refused, TextDelta, TurnEnded
from safesteer_edge.session.protocol import ChatMessage, ChatSession, Document, SessionInfo
from safesteer_edge.templates.conversation import Role


class OpenChat:
    """One chat being written. A full disk is told, once for each write, and never raised."""

    def __init__(
        self,
        log: ChatLog,
        file: ChatFile | None,
        store: ChatStore | None,
        *,
        on_problem: Callable[[str], None],
    ) -> None:
        """file: whose log it is; None: it is not saved."""
        self.log = log
        self._file = file
        self._store = store
        self._on_problem = on_problem
        # Where media lie that are not in the store.
        self._paths: dict[str, Path] = {}
        self._lost: dict[StoredMedia, bool] = {}

    @classmethod
    def begin(
        cls,
        model: ModelUsed | None,
        store: ChatStore | None,
        *,
        on_problem: Callable[[str], None],
    ) -> OpenChat:
        """A new chat, in memory if there is no store or it takes none."""
        if store is not None:
            try:
                file = store.create(model)
                return cls(file.log, file, store, on_problem=on_problem)
            except ChatStoreError as error:
                on_problem(str(error))
        log = ChatLog(ChatHeader("unsaved", time.time(), model))
        return cls(log, None, None, on_problem=on_problem)

    @property
    def is_saved(self) -> bool:
        """Whether it has a file."""
        return self._file is not None

    def add(self, record: Record) -> None:
        """Add a record."""
        with self._problems_told():
            (self._file.add if self._file else self.log.apply)(record)

    def add_message(
        self, role: Role, parent: str | None, text: str, media: tuple[StoredMedia, ...] = ()
    ) -> str:
        """Add a message and return its id."""
        entry_id = self.log.new_id()
        self.add(MessageAdded(entry_id, parent, role, time.time(), text, media))
        return entry_id

    def keep(self, question: ChatMessage) -> tuple[StoredMedia, ...]:
        """Copy a question's files into the store. Raises MediaError for what is no file."""
        return (
            *(self._keep(path, "image", path.name) for path in question.images),
            *(self._keep(path, "audio", path.name) for path in question.sounds),
            *(self._keep(each.path, "document", each.name) for each in question.documents),
        )

    def media_path(self, media: StoredMedia) -> Path:
        """Where a medium lies."""
        if self._store is None or media.file in self._paths:
            return self._paths.get(media.file, Path(media.file))
        return self._store.media.path(media)

    def is_lost(self, media: StoredMedia) -> bool:
        """Whether its file is gone, or holds something else by now. Reads it the first time."""
        if media not in self._lost:
            path = self.media_path(media)
            is_own = self._store is not None and media.file not in self._paths
            has_it = self._store.media.has(media) if self._store and is_own else path.is_file()
            self._lost[media] = not has_it
        return self._lost[media]

    def message(self, entry: ChatEntry) -> ChatMessage:
        """An entry as sessions take it; words stand in the place of a file that is lost."""
        guard = entry.end.guard if entry.end is not None else None
        lost = [
            f"[{item.kind} {item.name!r} is lost]" for item in entry.media if self.is_lost(item)
        ]
        return ChatMessage(
            entry.role,
            "\n".join([*lost, entry.text]) if lost else entry.text,
            *files_of([item for item in entry.media if not self.is_lost(item)], self.media_path),
            guard.risk if guard is not None else None,
        )

    def messages(self, branch: Sequence[ChatEntry]) -> list[ChatMessage]:
        """A branch as sessions take it, without a question that nothing was said to.

        A summary stands in the place of what it sums up.
        """
        kept = list(answered(branch))
        start = next((i for i in reversed(range(len(kept))) if is_summed_up(kept[i:])), 0)
        system = [entry for entry in kept[:start] if entry.role == "system"]
        return [self.message(entry) for entry in (*system, *kept[start:])]

    def close(self) -> None:
        """Write what waits, and let others have the file. Idempotent."""
        if self._file is None:
            return
        with self._problems_told():
            self._file.close()
        if not self.log.entries:
            self._file.path.unlink(missing_ok=True)  # nothing was said: the question failed

    def _keep(self, path: Path, kind: StoredKind, name: str) -> StoredMedia:
        if self._store is not None:
            with self._problems_told(), self._store.media.lock(shared=True):
                return self._store.media.add(path, kind, name)
        medium = StoredMedia(kind, "", str(path), name)
        self._paths[medium.file] = path
        return medium

    @contextlib.contextmanager
    def _problems_told(self) -> Iterator[None]:
        try:
            yield
        except ChatStoreError as error:  # the chat goes on in memory
            self._on_problem(str(error))


def files_of(
    media: Sequence[StoredMedia], media_path: Callable[[StoredMedia], Path]
) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Document, ...]]:
    """Pictures, sounds, and documents under the names that they had."""
    return (
        tuple(media_path(item) for item in media if item.kind == "image"),
        tuple(media_path(item) for item in media if item.kind == "audio"),
        tuple(Document(media_path(item), item.name) for item in media if item.kind == "document"),
    )


def answered(branch: Sequence[ChatEntry]) -> Sequence[ChatEntry]:
    """A branch without a question at its end that nothing was said to."""
    kept = list(branch)
    if kept and kept[-1].role == "assistant" and kept[-1].end is None and not kept[-1].text:
        kept.pop()
    if kept and kept[-1].role == "user":
        kept.pop()
    return kept


def model_used(info: SessionInfo) -> ModelUsed:
    """What a chat's file says of the model that answers."""
    return ModelUsed(
        name=info.model_name,
        path=str(info.model_path),
        architecture=info.architecture,
        quantization=info.quantization,
        tensor_table_sha256=info.tensor_table_sha256,
        mmproj=str(info.mmproj) if info.mmproj else None,
        bundle=info.bundle,
        probe_sha256=info.probe_sha256,
    )


# -- recording one turn as it streams, and taking it back where it does not count ------------------


class TurnRecord:
    """One turn of a chat.

    question_id: the question that is answered; None: an answer is gone on with, answer_id.
    shown_before: the head that the chat returns to if the turn does not count.
    """

    def __init__(
        self,
        chat: OpenChat,
        session: ChatSession,
        *,
        question_id: str | None = None,
        answer_id: str | None = None,
        shown_before: HeadMoved | None = None,
    ) -> None:
        self._chat = chat
        self._session = session
        self._question_id = question_id
        self._answer_id = answer_id
        self._shown_before = shown_before
        self._says_more = False

    def record(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """Pass a session's events on, each written down before it is seen."""
        try:
            for event in events:
                self._write(event)
                if isinstance(event, TurnEnded) and is_summed_up(self._chat.log.branch()[-2:]):
                    self._catch_up()
                yield event
        except EngineDiedError:
            if self._answer_id is not None and (self._says_more or self._question_id is None):
                self._chat.add(AnswerEnded(self._answer_id, time.time(), "died"))
            else:
                self._take_back()
            raise
        except (SafeSteerError, GeneratorExit):
            events.close()  # before the session is asked for anything else
            if self._question_id is not None:
                self._take_back()
            else:
                self._catch_up()
            raise

    def _write(self, event: Event) -> None:
        if self._answer_id is None:
            self._answer_id = self._chat.add_message("assistant", self._question_id, "")
        if isinstance(event, TextDelta) and event.part == "reasoning":
            self._chat.add(TextAdded(self._answer_id, event.text, "reasoning"))
        elif isinstance(event, TextDelta | Refused):
            self._says_more = True
            self._chat.add(TextAdded(self._answer_id, event.text))
        elif isinstance(event, TurnEnded):
            if event.usage.prompt_tokens:
                self._chat.add(
                    AnswerEnded(
                        self._answer_id,
                        time.time(),
                        event.finish_reason,
                        event.guard,
                        event.usage,
                        event.refusal,
                    )
                )
            elif self._question_id is not None:  # stopped while the prompt was read: no turn
                self._take_back()

    def _take_back(self) -> None:
        """Remove the turn from what is shown, and bring the session to what is."""
        log = self._chat.log
        for entry_id in (self._answer_id, self._question_id):
            has_children = any(entry.parent == entry_id for entry in log.entries)
            if entry_id is not None and not has_children:
                self._chat.add(MessageDropped(entry_id))
        if self._shown_before is not None and self._shown_before.id != log.head:
            self._chat.add(self._shown_before)
        self._catch_up()

    def _catch_up(self) -> None:
        messages = self._chat.messages(self._chat.log.branch())
        shown = [(message.role, message.text) for message in messages]
        if shown != [(message.role, message.text) for message in self._session.messages]:
            with contextlib.suppress(SafeSteerError):  # the next question meets it, and says so
                self._session.restore(messages)
