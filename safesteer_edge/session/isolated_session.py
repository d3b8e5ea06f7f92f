"""A session whose engine runs in a child process: a `ChatSession` that outlives a native crash."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from safesteer_edge.errors import (
    BundleChangedError,
    BundleError,
    EngineDiedError,
    EngineError,
    GuardError,
    InputError,
    ProbeFileError,
    VectorFileError,
)
from safesteer_edge.formats.json_values import from_json, to_json
from safesteer_edge.guard.events import Event, Refused, TextDelta, TurnEnded, event_from_json
from safesteer_edge.session.answer_form import ANY_FORM, AnswerForm
from safesteer_edge.session.engine_process import EngineProcess, error_from_json
from safesteer_edge.session.protocol import (
    ChatMessage,
    OpenedSession,
    SessionInfo,
    TurnSettings,
    make_settings,
)
from safesteer_edge.session.settings import SessionSettings


class IsolatedSession(OpenedSession):
    """As `session.Session`; what its methods promise stands at `ChatSession`.

    When the engine dies, the call that meets it raises EngineDiedError, an answer that was being
    told stays in `messages` as far as it came, and the next call starts the engine again with the
    same conversation. If it does not meet the same guard, that call and all later ones raise
    BundleChangedError.
    """

    def __init__(self, settings: SessionSettings) -> None:
        """Start the engine and load the model; raises as `open_isolated_session`."""
        self._settings = settings
        self._turn_settings = TurnSettings.of(settings)
        self._messages: tuple[ChatMessage, ...] = ()
        self._n_turns = 0
        self._active_turn = 0
        self._cancelled_turn = 0
        self._is_closed = False
        self._process: EngineProcess | None = None
        self._first_info: SessionInfo | None = None
        self._why_over: str | None = None
        self._info = self._start()

    @property
    def info(self) -> SessionInfo:
        return self._info

    @property
    def turn_settings(self) -> TurnSettings:
        return self._turn_settings

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        return self._messages

    @property
    def process_id(self) -> int | None:
        """The engine's process, None while there is none."""
        process = self._process
        return process.process_id if process is not None and process.is_alive else None

    def check_fits(self, text: str, *, system: str | None = None) -> None:
        self._request({"do": "check_fits", "text": text, "system": system})

    def continue_answer(self) -> Generator[Event, None, None]:
        self._n_turns += 1
        return self._run(self._n_turns, {"do": "continue"}, None)

    def restore(self, messages: Sequence[ChatMessage]) -> None:
        self._request(_restoring(messages))
        self._messages = tuple(messages)

    def reset(self) -> None:
        self._messages = ()  # whatever becomes of the engine
        self._request({"do": "reset"})

    def change(self, settings: TurnSettings) -> None:
        reply = self._request({"do": "change", "settings": to_json(settings)})
        self._turn_settings = settings
        self._info = from_json(SessionInfo, reply["ready"])

    def cancel(self) -> None:
        self._cancelled_turn = self._n_turns
        process, turn = self._process, self._active_turn
        if process is not None and turn:
            process.send_now({"do": "cancel", "turn": turn})

    def close(self) -> None:
        super().close()
        self._is_closed = True
        process, self._process = self._process, None
        if process is not None:
            if self._active_turn:
                process.send_now({"do": "abandon", "turn": self._active_turn})
            process.close()

    # -- a turn -----------------------------------------------------------------------------------

    def ask_message(
        self,
        question: ChatMessage,
        *,
        system: str | None = None,
        answer_prefix: str = "",
        form: AnswerForm = ANY_FORM,
    ) -> Generator[Event, None, None]:
        request = {
            "do": "ask",
            "question": to_json(question),
            "system": system,
            "answer_prefix": answer_prefix,
            "form": to_json(form),
        }
        asked = () if system is None else (ChatMessage("system", system),)
        self._n_turns += 1
        return self._run(self._n_turns, request, (*asked, question))

    def _run(
        self, turn: int, request: Mapping[str, Any], asked: tuple[ChatMessage, ...] | None
    ) -> Generator[Event, None, None]:
        """asked: the messages that the answer follows; None: it goes on with the last."""
        process = self._ready()
        before = self._messages
        if asked is None and (not before or before[-1].role != "assistant"):
            raise InputError("there is no answer to continue; ask something first")
        begun = before + asked if asked is not None else before[:-1]
        said = "" if asked is not None else before[-1].text
        self._active_turn = turn
        if self._cancelled_turn == turn:
            # It stays cancelled; said first, for a short answer is whole before a later word.
            process.send_now({"do": "cancel", "turn": turn})
        process.send({**request, "turn": turn, "steps": self.tells_steps})
        try:
            while self._active_turn == turn and (event := self._next_event(process)) is not None:
                if (isinstance(event, TextDelta) and event.part == "answer") or isinstance(
                    event, Refused
                ):
                    said += event.text
                elif isinstance(event, TurnEnded):
                    if event.usage.prompt_tokens:  # else it was stopped before, and has not joined
                        answer = ChatMessage("assistant", event.text, risk=event.guard.risk)
                        self._messages = (*begun, answer)
                    self._hear_the_end(process)
                yield event
        except EngineDiedError as error:
            if said:  # what people read stays, with a risk that nobody knows
                self._messages = (*begun, ChatMessage("assistant", said))
            raise (_closed() if self._is_closed else error) from None
        except GeneratorExit:
            self._abandon(turn)
            raise
        except KeyboardInterrupt:  # it may have cut a reply in two
            process.kill()
            raise
        finally:
            if self._active_turn == turn:
                self._active_turn = 0

    def _next_event(self, process: EngineProcess) -> Event | None:
        """The next event of the turn; None: there are no more. Raises the turn's error."""
        reply = process.receive()
        if "event" in reply:
            return _event(reply, process)
        self._active_turn = 0
        _checked(reply)
        return None

    def _hear_the_end(self, process: EngineProcess) -> None:
        """Read what follows a turn's last event; the turn is whole, whatever happens now."""
        with contextlib.suppress(EngineDiedError):  # the next call starts it anew
            process.receive()
        self._active_turn = 0

    def _abandon(self, turn: int) -> None:
        """Drop a turn whose events nobody reads any more, and read what it still says."""
        process = self._process
        if process is None or self._active_turn != turn:
            return
        process.send_now({"do": "abandon", "turn": turn})
        self._active_turn = 0
        with contextlib.suppress(EngineDiedError):  # the next call starts it anew
            is_whole = False
            while "event" in (reply := process.receive()):
                is_whole = is_whole or isinstance(_event(reply, process), TurnEnded)
            if is_whole:  # the engine was faster, and the turn has joined its conversation
                process.send(_restoring(self._messages))
                process.receive()

    # -- the process ------------------------------------------------------------------------------

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return _answer_of(self._ready(), request)

    def _ready(self) -> EngineProcess:
        """The engine, started again with the same conversation if it died."""
        if self._why_over is not None:
            raise BundleChangedError(self._why_over)
        if self._is_closed:
            raise _closed()
        if self._active_turn:
            self._abandon(self._active_turn)
        if self._process is None or not self._process.is_alive:
            self._info = self._start()
        if self._process is None:
            raise _closed()
        return self._process

    def _start(self) -> SessionInfo:
        """Load the model in a new process, and bring it to the conversation and its settings."""
        if self._process is not None:
            self._process.close()
        process = self._process = EngineProcess()
        try:
            verbose = logging.getLogger("safesteer_edge").isEnabledFor(logging.DEBUG)
            process.send({"do": "open", "settings": to_json(self._settings), "verbose": verbose})
            reply = process.receive()
            self._check_guard(reply)
            if self._turn_settings != TurnSettings.of(self._settings):
                change = {"do": "change", "settings": to_json(self._turn_settings)}
                reply = _answer_of(process, change)
            if self._messages:
                _answer_of(process, _restoring(self._messages))
        except BaseException:
            process.kill()
            raise
        return from_json(SessionInfo, reply["ready"])

    def _check_guard(self, opened: dict[str, Any]) -> None:
        """Raise what opening raised; after a restart, end the session if its guard is not there.

        Files that change while people chat must not change what guards them.
        """
        first, problem = self._first_info, "it has changed"
        try:
            info = from_json(SessionInfo, _checked(opened)["ready"])
        except (BundleError, ProbeFileError, VectorFileError) as error:
            if first is None:
                raise
            problem = f"it cannot be used any more ({error})"
        else:
            if first is None:
                self._first_info = first = info
            if (info.bundle_sha256, info.policy) == (first.bundle_sha256, first.policy):
                return
        self._why_over = (
            f"the engine was started again, and guard bundle {first.bundle!r} is not what this "
            f"session began with: {problem}; the session is over: look at the bundle, and open it "
            "again"
        )
        raise BundleChangedError(self._why_over)


def open_isolated_session(
    model: str | os.PathLike[str] | SessionSettings | None = None, **settings: Any
) -> IsolatedSession:
    """Load a model with its guard in a child process, and begin a conversation.

    Takes what `open_session` does, and raises what that does, and EngineDiedError.
    """
    return IsolatedSession(make_settings(model, settings))


def _restoring(messages: Sequence[ChatMessage]) -> dict[str, Any]:
    return {"do": "restore", "messages": [to_json(message) for message in messages]}


def _closed() -> EngineError:
    return EngineError("the session is closed; open a new one")


def _answer_of(process: EngineProcess, request: Mapping[str, Any]) -> dict[str, Any]:
    process.send(request)
    return _checked(process.receive())


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        raise error_from_json(reply["error"])
    return reply


def _event(reply: dict[str, Any], process: EngineProcess) -> Event:
    """The event of a reply. Raises EngineDiedError, and ends the process, if it is none."""
    try:
        return event_from_json(reply)
    except (KeyError, TypeError, GuardError) as error:
        raise process.end_for(error) from error
