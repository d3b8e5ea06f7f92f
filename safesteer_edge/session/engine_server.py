"""The child's side: a session that is asked through a pipe.

Two threads: this one decodes; another reads requests, so that a cancel is seen within one token,
and ends the process when the parent has gone.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import IO, Any, Final, NoReturn

from safesteer_edge.errors import EngineError
from safesteer_edge.formats.json_values import from_json, to_json
from safesteer_edge.guard.events import Event, Step, TextDelta, TurnEnded, event_to_json
from safesteer_edge.session.answer_form import AnswerForm
from safesteer_edge.session.engine_process import MAX_LINE_BYTES, decode, encode, error_to_json
from safesteer_edge.session.protocol import ChatMessage, TurnSettings
from safesteer_edge.session.session import Session, open_session
from safesteer_edge.session.settings import SessionSettings

BEAT_S: Final = 2.0
# Each write wakes the parent, on cores that decode: events of fast tokens go in one. Nobody sees a
# twentieth of a second.
GATHER_S: Final = 0.05


def serve(_: dict[str, Any], requests: IO[bytes], replies_fd: int) -> NoReturn:
    """What a child process runs: see `processes.child_main`."""
    faulthandler.enable()  # a crash leaves its Python stack in the log
    EngineServer(requests, replies_fd).serve()


class EngineServer:
    """Serves one parent; see `engine_process` for what crosses the pipe."""

    def __init__(self, requests: IO[bytes], replies_fd: int) -> None:
        self._requests = requests
        self._replies_fd = replies_fd
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._write_lock = threading.Lock()
        self._turn_lock = threading.Lock()
        self._session: Session | None = None
        self._turn = 0
        self._last_cancelled_turn = 0
        self._last_abandoned_turn = 0
        self._is_busy = threading.Event()

    def serve(self) -> NoReturn:
        """Answer requests until told to close, or until the parent is gone. Never returns."""
        threading.Thread(target=self._read_requests, name="requests", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        while True:
            request = self._queue.get()
            self._is_busy.set()
            if request["do"] == "close":
                break
            try:
                self._do(request)
            except Exception as error:  # the edge of the process: the parent raises it
                traceback.print_exc(file=sys.stderr)
                self._write(encode({"error": error_to_json(error)}))
            self._is_busy.clear()
        if self._session is not None:
            self._session.close()
        os._exit(0)  # an ordinary exit would wait a second for the thread that reads stdin

    # -- requests ---------------------------------------------------------------------------------

    def _read_requests(self) -> None:
        """Queue requests; take what cannot wait at once."""
        try:
            while (line := self._requests.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                request = decode(line)
                if request["do"] in ("cancel", "abandon"):
                    self._stop(int(request["turn"]), is_abandoned=request["do"] == "abandon")
                else:
                    self._queue.put(request)
        except Exception:  # not our parent's words
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
        os._exit(0)  # the parent is gone: whatever native code is doing ends here

    def _stop(self, turn: int, *, is_abandoned: bool) -> None:
        with self._turn_lock:
            self._last_cancelled_turn = max(self._last_cancelled_turn, turn)
            if is_abandoned:
                self._last_abandoned_turn = max(self._last_abandoned_turn, turn)
            if self._turn == turn and self._session is not None:
                self._session.cancel()

    def _do(self, request: dict[str, Any]) -> None:
        do = request["do"]
        if do == "open":
            if request["verbose"]:
                logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
            self._session = open_session(from_json(SessionSettings, request["settings"]))
        session = self._session
        if session is None:
            raise EngineError("the engine process has no session; report this")
        turns: dict[str, Callable[[], Generator[Event, None, None]]] = {
            "ask": lambda: session.ask_message(
                from_json(ChatMessage, request["question"]),
                system=request["system"],
                answer_prefix=request["answer_prefix"],
                form=from_json(AnswerForm, request["form"]),
            ),
            "continue": session.continue_answer,
        }
        calls: dict[str, Callable[[], None]] = {
            "open": lambda: None,
            "check_fits": lambda: session.check_fits(request["text"], system=request["system"]),
            "restore": lambda: session.restore(
                [from_json(ChatMessage, item) for item in request["messages"]]
            ),
            "reset": session.reset,
            "change": lambda: session.change(from_json(TurnSettings, request["settings"])),
        }
        if do in turns:
            self._tell(int(request["turn"]), turns[do](), tells_steps=request["steps"])
        elif do in calls:
            calls[do]()
            self._write(encode({"ready": to_json(session.info)}))
        else:
            raise EngineError(f"the engine process knows no request {do!r}; report this")

    # -- replies ----------------------------------------------------------------------------------

    def _tell(self, turn: int, events: Generator[Event, None, None], *, tells_steps: bool) -> None:
        """Send a turn's events as they happen; without its steps, texts that wait become one."""
        with self._turn_lock:  # from here on a cancel reaches the session itself
            self._turn = turn
            if self._last_cancelled_turn >= turn and self._session is not None:
                self._session.cancel()
        held, written_s, has_said = list[Event](), 0.0, False

        def write() -> None:
            nonlocal written_s
            if held:
                self._write(b"".join(encode(event_to_json(event)) for event in held))
                held.clear()
                written_s = time.perf_counter()

        try:
            for event in events:
                # A turn that has ended has joined the conversation, and the parent must hear of it.
                if self._last_abandoned_turn >= turn and not isinstance(event, TurnEnded):
                    break
                is_due = time.perf_counter() - written_s >= GATHER_S
                if isinstance(event, Step):  # its text, if it is settled, follows at once
                    if is_due:
                        write()
                    held += [event] if tells_steps else []
                    continue
                last = held[-1] if held and not tells_steps else None
                if (
                    isinstance(event, TextDelta)
                    and isinstance(last, TextDelta)
                    and event.part == last.part
                ):
                    held[-1] = replace(last, text=last.text + event.text)
                else:
                    held.append(event)
                if is_due or not (isinstance(event, TextDelta) and has_said):
                    write()
                has_said = has_said or isinstance(event, TextDelta)  # the first goes at once
        finally:
            with self._turn_lock:
                self._turn = 0
            events.close()
            write()
        self._write(encode({"done": turn}))

    def _write(self, data: bytes) -> None:
        with self._write_lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._replies_fd, view) :]

    def _beat(self) -> None:
        """Tell a parent that waits that this process is not frozen, whatever native code does."""
        pause = threading.Event()
        beat = encode({"beat": 1})
        while True:
            self._is_busy.wait()
            pause.wait(BEAT_S)
            if self._is_busy.is_set():
                self._write(beat)
