"""The one thread that talks to the session: it opens models and runs turns, and says what happens.

It knows nothing of Textual: `tell` may be called from this thread with a `Told`, and what a turn
brings waits in a mailbox that the interface empties at its own pace, so that a fast model never
floods it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safesteer_edge.chat_session import ChatSession
from safesteer_edge.errors import EngineError, SafeSteerError
from safesteer_edge.guard.events import Event
from safesteer_edge.session_info import SessionInfo
from safesteer_edge.settings import SessionSettings

SessionOpener = Callable[[SessionSettings], ChatSession]
TurnStarter = Callable[[ChatSession], Iterator[Event]]
_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class ModelOpened:
    """A model is loaded. info: what runs."""

    info: SessionInfo


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """A model could not be loaded. error: one line with a remedy."""

    error: str


@dataclass(frozen=True, slots=True)
class TurnDone:
    """A turn is over; its events are all in the mailbox.

    error: one line, if it broke; info: what runs now, which a restart may have changed.
    """

    turn: int
    error: str | None
    info: SessionInfo | None


Told = ModelOpened | ModelFailed | TurnDone


class EngineThread:
    """Start it, give it work, close it. All methods return at once, `close` within seconds."""

    def __init__(self, opener: SessionOpener, tell: Callable[[Told], None]) -> None:
        self._opener = opener
        self._tell = tell
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._session: ChatSession | None = None
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._is_cancelled = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    def open(self, settings: SessionSettings) -> None:
        """Free the present model, then load another one."""
        self._jobs.put(lambda: self._open(settings))

    def run_turn(self, turn: int, starter: TurnStarter) -> None:
        """Run a turn. turn: a number that comes back with its end."""
        self._is_cancelled = False
        self._jobs.put(lambda: self._run_turn(turn, starter))

    def take_events(self) -> list[Event]:
        """Empty the mailbox."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        """Stop the running turn within one token."""
        self._is_cancelled = True
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Stop what runs, free the model, end the thread."""
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
        self._free()

    def _open(self, settings: SessionSettings) -> None:
        self._free()
        try:
            self._session = self._opener(settings)
            self._tell(ModelOpened(self._session.info))
        except Exception as error:  # whatever it is, the person must read it and the app go on
            self._tell(ModelFailed(one_line(error)))

    def _run_turn(self, turn: int, starter: TurnStarter) -> None:
        error_text: str | None = None
        try:
            self._collect(starter)
        except Exception as error:  # as above
            error_text = one_line(error)
        info = None
        try:
            info = self._session.info if self._session else None
        except SafeSteerError as error:
            error_text = error_text or one_line(error)
        self._tell(TurnDone(turn, error_text, info))

    def _collect(self, starter: TurnStarter) -> None:
        session = self._session
        if session is None:
            raise EngineError("no model is loaded; choose one on the models screen (F3)")
        events = starter(session)
        if self._is_cancelled:  # Escape came while the question waited for its turn
            session.cancel()
        for event in events:
            with self._lock:
                self._events.append(event)

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
