"""The one thread that talks to the model and to the chat's file, and says what happens.

It knows nothing of Textual: `tell` may be called from this thread with a `Told`, and what a turn
brings waits in a mailbox that the interface empties at its own pace, so that a fast model never
floods it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from safesteer_edge.chats.chat_log import ChatEntry
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import (
    BundleChangedError,
    EngineError,
    NoBundleError,
    SafeSteerError,
)
from safesteer_edge.guard.events import Event
from safesteer_edge.session.protocol import ChatSession, SessionInfo
from safesteer_edge.session.settings import SessionSettings

SessionOpener = Callable[[SessionSettings], ChatSession]
TurnStarter = Callable[[RecordedChat], Iterator[Event]]
_Result = TypeVar("_Result")
_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """A model is loaded. chat_left: why the chat cannot go on with it, if so."""

    info: SessionInfo
    chat_left: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """No model runs. error: one line with a remedy. title: what happened, in a few words.

    lacks_guard: it would, if it had a guard.
    """

    error: str
    title: str = "The model could not be loaded"
    lacks_guard: bool = False


@dataclass(frozen=True, slots=True)
class NotSaved:
    """The chat could not be saved. problem: one line; it goes on in memory."""

    problem: str


@dataclass(frozen=True, slots=True)
class TurnDone:
    """A turn is over; its events are all in the mailbox.

    error: one line, if it broke. info: what runs now, which a restart may have changed. branch:
    the chat as its file has it.
    """

    turn: int
    error: str | None
    info: SessionInfo | None
    branch: tuple[ChatEntry, ...] = ()
    chat_id: str | None = None


Told = ModelOpened | ModelFailed | NotSaved | TurnDone


class EngineThread:
    """Start it, give it work, close it. All methods return at once, `close` within seconds."""

    def __init__(
        self, opener: SessionOpener, store: ChatStore | None, tell: Callable[[Told], None]
    ) -> None:
        """store: None saves nothing."""
        self._opener = opener
        self._store = store
        self._tell = tell
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._session: ChatSession | None = None
        self._chat: RecordedChat | None = None
        self._events: deque[Event] = deque()
        self._is_cancelled = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def open(self, settings: SessionSettings) -> None:
        """Free the present model, then load another one; the chat goes on with it."""
        self._jobs.put(lambda: self._open(settings))

    def run_turn(self, turn: int, starter: TurnStarter) -> None:
        self._is_cancelled = False
        self._jobs.put(lambda: self._run_turn(turn, starter))

    def call(self, work: Callable[[RecordedChat], _Result]) -> Future[_Result]:
        """Do something with the chat when it is its turn."""
        future: Future[_Result] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(self._need_chat()))
            except BaseException as error:  # whoever waits for it raises it
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def take_events(self) -> list[Event]:
        return [self._events.popleft() for _ in range(len(self._events))]

    def cancel(self) -> None:
        """Stop the running turn within one token."""
        self._is_cancelled = True
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Stop what runs, write what waits, free the model, end the thread."""
        self._is_closing = True
        self.cancel()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)

    # -- on the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._is_closing:
                job()
        if self._chat is not None:
            self._chat.close()
        self._free()

    def _open(self, settings: SessionSettings) -> None:
        self._free()
        try:
            self._session = self._opener(settings)
            self._tell(ModelOpened(self._session.info, self._enter(self._session)))
        except Exception as error:  # whatever it is, the person must read it and the app go on
            self._free()
            self._tell(ModelFailed(one_line(error), lacks_guard=isinstance(error, NoBundleError)))

    def _enter(self, session: ChatSession) -> str | None:
        """Let the chat go on with a session; returns why it cannot, and begins another then."""
        chat, why_not = self._chat, None
        if chat is not None:
            try:
                chat.change_session(session)
                return None
            except SafeSteerError as error:
                why_not = one_line(error)
                chat.close()
        self._chat = RecordedChat(
            session, self._store, on_problem=lambda problem: self._tell(NotSaved(problem))
        )
        return why_not

    def _run_turn(self, turn: int, starter: TurnStarter) -> None:
        error_text: str | None = None
        is_over = False
        try:
            self._collect(starter)
        except Exception as error:  # as above
            error_text = one_line(error)
            is_over = isinstance(error, BundleChangedError)
        info, branch, chat_id = None, (), None
        try:
            info = self._session.info if self._session else None
            log = self._chat.log if self._chat else None
            if log is not None:
                branch, chat_id = log.branch(), log.header.id
        except SafeSteerError as error:
            error_text = error_text or one_line(error)
        self._tell(TurnDone(turn, error_text, info, branch, chat_id))
        if is_over and error_text is not None:
            self._free()
            self._tell(ModelFailed(error_text, "The guard's files have changed"))

    def _collect(self, starter: TurnStarter) -> None:
        chat = self._need_chat()
        events = starter(chat)
        if self._is_cancelled:  # Escape came while the question waited for its turn
            chat.session.cancel()
        for event in events:
            self._events.append(event)

    def _need_chat(self) -> RecordedChat:
        if self._session is None or self._chat is None:
            raise EngineError("no model is loaded; choose one (/models)")
        return self._chat

    def _free(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.close()
        except Exception:  # it is gone either way, and the next model must load
            logging.getLogger("safesteer_edge").debug("closing the session", exc_info=True)


def one_line(error: BaseException) -> str:
    """The error as people read it; unexpected ones say what they are."""
    text = " ".join(str(error).split())
    if isinstance(error, SafeSteerError):
        return text
    logging.getLogger("safesteer_edge").debug("unexpected error", exc_info=error)
    if isinstance(error, MemoryError):
        return "out of memory; choose a smaller model or a shorter context"
    return f"unexpected {type(error).__name__}: {text}; please report it"
