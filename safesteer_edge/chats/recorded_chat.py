"""A session and its chat on disk, kept in step: ask, and it is recorded as it streams.

The headless half of every interface: it knows branches and files, and nothing of screens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from safesteer_edge.chats.chat_file import ChatFile
from safesteer_edge.chats.chat_log import (
    SUMMARY_QUESTION,
    ChatEntry,
    ChatLog,
    first_words,
    tells_enough,
)
from safesteer_edge.chats.chat_store import ChatStore, checked_title
from safesteer_edge.chats.open_chat import (
    OpenChat,
    TurnRecord,
    answered,
    model_used,
)
from safesteer_edge.chats.records import HeadMoved, ModelChanged, StoredMedia, Titled
from safesteer_edge.errors import InputError
from safesteer_edge.guard.events import Event, Refused, Step, TextDelta, TurnEnded
from safesteer_edge.session.protocol import ChatMessage, ChatSession, Document, TurnSettings

_WHOLE = ("stop", "length", "loop")  # ends of an answer that the model gave


class RecordedChat:
    """One chat at a time. One thread uses it; the session's `cancel` may come from any.

    A chat that cannot be saved (a full disk) goes on in memory, and `on_problem` is told why.
    """

    def __init__(
        self,
        session: ChatSession,
        store: ChatStore | None,
        *,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        """store: None saves nothing. The session stays the caller's to close."""
        self.session = session
        self._store = store
        self._on_problem = on_problem
        self._chat: OpenChat | None = None

    @property
    def log(self) -> ChatLog | None:
        """The chat; None before its first question."""
        return self._chat.log if self._chat is not None else None

    @property
    def is_saved(self) -> bool:
        """Whether the chat has a file."""
        return self._chat is not None and self._chat.is_saved

    @property
    def unanswered(self) -> ChatEntry | None:
        """A question at the end that the program was ended on: to be asked again."""
        branch = self.log.branch() if self.log is not None else ()
        rest = branch[len(answered(branch)) :]
        return next((entry for entry in rest if entry.role == "user"), None)

    def media_path(self, media: StoredMedia) -> Path:
        """Where a medium of the chat lies."""
        return self._need_chat().media_path(media)

    def is_lost(self, media: StoredMedia) -> bool:
        """Whether its file is gone or damaged; the chat goes on without it."""
        return self._need_chat().is_lost(media)

    # -- chats ------------------------------------------------------------------------------------

    def start_new(self) -> None:
        """Leave the chat and begin another with the next question."""
        self.close()
        self.session.reset()

    def change_session(self, session: ChatSession) -> None:
        """Go on with another model; the session before stays the caller's to close.

        Raises MediaError, if the model cannot see or hear what the chat has; nothing is changed.
        """
        if self._chat is not None:
            session.restore(self._chat.messages(self._chat.log.branch()))
        self.session = session
        self._note_model()

    def resume(self, chat_id: str) -> None:
        """Go on with a stored chat. Raises ChatFileError, MediaError; the present one stays then.

        An answer that was cut off with the program is kept as far as it was saved; in the place of
        a picture that is lost the model gets words that say so.
        """
        if self.log is not None and self.log.header.id == chat_id:
            return
        self._enter(self._need_store().open(chat_id))
        self._note_model()

    def fork(self, entry_id: str | None = None) -> str:
        """Go on in a copy that ends at a message, or at the head; returns the copy's id."""
        copy = self._need_store().fork(self._need_chat().log, end=entry_id)
        self._enter(copy)
        return copy.log.header.id

    def resume_copy(self, chat_id: str) -> str:
        """Go on in a copy of a stored chat, as where it is open in another window."""
        store = self._need_store()
        copy = store.fork(store.read(chat_id))
        self._enter(copy)
        self._note_model()
        return copy.log.header.id

    def rename(self, title: str) -> None:
        """Give the chat a title. Raises InputError."""
        self._need_chat().add(Titled(checked_title(title)))

    def switch_to(self, entry_id: str) -> None:
        """Show the newest branch through a message. Raises ChatFileError, MediaError."""
        chat = self._need_chat()
        head = chat.log.newest_leaf(entry_id)
        self.session.restore(chat.messages(chat.log.branch(head)))
        chat.add(HeadMoved(head))

    def take_back(self, entry_id: str) -> None:
        """Go on from before a question; it and what followed stay on a branch of their own."""
        chat = self._need_chat()
        before = _branch_before(chat.log, chat.log.entry(entry_id))
        self.session.restore(chat.messages(before))
        chat.add(HeadMoved(before[-1].id if before else None))

    def close(self) -> None:
        """Close the chat's file; the session stays open. Idempotent."""
        chat, self._chat = self._chat, None
        if chat is not None:
            chat.close()

    # -- turns ------------------------------------------------------------------------------------

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Path] = (),
        sounds: Sequence[Path] = (),
        documents: Sequence[Document] = (),
        system: str | None = None,
    ) -> Generator[Event, None, None]:
        """Ask at the end of the chat, and record it. Events and errors are the session's."""
        question = ChatMessage("user", text, tuple(images), tuple(sounds), tuple(documents))
        return self._ask(question, system, _asked(self.session, question, system))

    def sum_up(self) -> Generator[Event, None, None]:
        """Ask for a summary, which the next prompts have in the place of all before it.

        The chat's file keeps all. Where the context is full, the model does not see the oldest
        turns. A summary that leaves out too much is replaced by the first words of all that was
        said, which the answer then is.
        """
        usual = self.session.turn_settings
        self.session.change(replace(usual, when_full="drop"))
        try:
            question = ChatMessage("user", SUMMARY_QUESTION)
            yield from self._ask(question, None, self._summary(_asked(self.session, question)))
        finally:
            self.session.change(usual)

    def check_fits(
        self, text: str, *, system: str | None = None, in_place_of: str | None = None
    ) -> None:
        """Count the tokens of a question at the end, or in the place of one that was asked.

        Media are left out. Raises PromptTooLongError, which says how many they are, and InputError.
        """
        if in_place_of is None:
            self.session.check_fits(text, system=system)
            return
        chat = self._need_chat()
        branch = chat.log.branch()
        self.session.restore(chat.messages(_branch_before(chat.log, chat.log.entry(in_place_of))))
        try:
            self.session.check_fits(text)
        finally:
            self.session.restore(chat.messages(branch))

    def edit(
        self,
        entry_id: str,
        text: str,
        *,
        images: Sequence[Path] | None = None,
        sounds: Sequence[Path] | None = None,
        documents: Sequence[Document] | None = None,
    ) -> Generator[Event, None, None]:
        """Ask another question in the place of one; the old one stays on its own branch.

        images, sounds, documents: None keeps the old one's.
        """
        chat = self._need_chat()
        entry = chat.log.entry(entry_id)
        if entry.role != "user":
            raise InputError(f"message {entry_id!r} is no question; edit a question")
        old = chat.message(entry)
        question = ChatMessage(
            "user",
            text,
            old.images if images is None else tuple(images),
            old.sounds if sounds is None else tuple(sounds),
            old.documents if documents is None else tuple(documents),
        )
        self.session.restore(chat.messages(_branch_before(chat.log, entry)))
        return self._ask(question, None, _asked(self.session, question), edited=entry)

    def regenerate(self) -> Generator[Event, None, None]:
        """Ask the last question again; the old answer stays on its own branch.

        The same seed gives the same answer: change the settings first for another.
        """
        chat, question = self._need_chat(), self._last_question()
        message = chat.message(question)
        self.session.restore(chat.messages(_branch_before(chat.log, question)))
        events = _asked(self.session, message)
        if question.text == SUMMARY_QUESTION:
            events = self._summary(events)
        shown = HeadMoved(chat.log.head)
        turn = TurnRecord(chat, self.session, question_id=question.id, shown_before=shown)
        return turn.record(events)

    def continue_answer(self) -> Generator[Event, None, None]:
        """Go on with the last answer; see `ChatSession.continue_answer`."""
        chat = self._need_chat()
        if chat.log.head is None or chat.log.entry(chat.log.head).role != "assistant":
            raise InputError("there is no answer to continue; ask something first")
        turn = TurnRecord(chat, self.session, answer_id=chat.log.head)
        return turn.record(self.session.continue_answer())

    def answer_unrecorded(self, settings: TurnSettings) -> Generator[Event, None, None]:
        """Answer the last question with other settings, beside the chat: nothing is recorded.

        For seeing the same prompt with the guard on and off. Raises SettingsError and as `ask`.
        """
        chat, question = self._need_chat(), self._last_question()
        message, usual = chat.message(question), self.session.turn_settings
        branch = chat.log.branch()
        self.session.change(settings)
        try:
            self.session.restore(chat.messages(_branch_before(chat.log, question)))
            events = _asked(self.session, message)
            with contextlib.closing(events):
                yield from events
        finally:
            self.session.change(usual)
            self.session.restore(chat.messages(branch))

    # -- private ----------------------------------------------------------------------------------

    def _ask(
        self,
        question: ChatMessage,
        system: str | None,
        events: Generator[Event, None, None],
        edited: ChatEntry | None = None,
    ) -> Generator[Event, None, None]:
        if self._chat is None:
            model = model_used(self.session.info)
            self._chat = OpenChat.begin(model, self._store, on_problem=self._on_problem)
        chat = self._chat
        branch = answered(chat.log.branch())
        shown = HeadMoved(branch[-1].id if branch else None)
        parent = shown.id if edited is None else edited.parent
        media = chat.keep(question)
        if system is not None and parent is None:
            parent = chat.add_message("system", None, system)
        question_id = chat.add_message("user", parent, question.text, media)
        turn = TurnRecord(chat, self.session, question_id=question_id, shown_before=shown)
        yield from turn.record(events)

    def _summary(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """A summary's events; its text is held back until it is seen whether it is one."""
        told: list[Event] = []
        n_characters = 0
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, TextDelta) and event.part == "answer":
                    told.append(event)
                    continue
                if isinstance(event, Step):
                    n_characters += len(event.text)
                if isinstance(event, TurnEnded) and event.finish_reason in _WHOLE:
                    branch = self._need_chat().log.branch()
                    if event.finish_reason == "loop" or not tells_enough(event.text, branch):
                        text = first_words(branch, self.session.info.n_ctx)
                        # Behind all that the steps wrote: none of these words is the guard's.
                        told = [TextDelta(text, start=n_characters)]
                        event = replace(event, text=text, finish_reason="stop")
                if isinstance(event, Refused | TurnEnded):
                    yield from told
                    told = []
                yield event

    def _enter(self, file: ChatFile) -> None:
        """Make another chat the present one, if the session can take it."""
        chat = OpenChat(file.log, file, self._store, on_problem=self._on_problem)
        try:
            self.session.restore(chat.messages(chat.log.branch()))
        except BaseException:
            chat.close()
            raise
        self.close()
        self._chat = chat

    def _note_model(self) -> None:
        model = model_used(self.session.info)
        if self._chat is not None and self._chat.log.model != model:
            self._chat.add(ModelChanged(model, time.time()))

    def _last_question(self) -> ChatEntry:
        branch = self._need_chat().log.branch()
        question = next((entry for entry in reversed(branch) if entry.role == "user"), None)
        if question is None:
            raise InputError("there is no question to answer again; ask something first")
        return question

    def _need_store(self) -> ChatStore:
        if self._store is None:
            raise InputError(
                "chats are not being saved; turn saving on: 'settings set chats.save true'"
            )
        return self._store

    def _need_chat(self) -> OpenChat:
        if self._chat is None:
            raise InputError("there is no chat yet; ask something first")
        return self._chat


def _asked(
    session: ChatSession, question: ChatMessage, system: str | None = None
) -> Generator[Event, None, None]:
    return session.ask(
        question.text,
        images=question.images,
        sounds=question.sounds,
        documents=question.documents,
        system=system,
    )


def _branch_before(log: ChatLog, entry: ChatEntry) -> Sequence[ChatEntry]:
    return log.branch(entry.parent) if entry.parent is not None else ()
