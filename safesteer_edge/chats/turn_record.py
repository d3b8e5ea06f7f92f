"""Recording one turn as it streams, and taking it back where it does not count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from safesteer_edge.chat_session import ChatSession
from safesteer_edge.chats.open_chat import OpenChat
from safesteer_edge.chats.records import AnswerEnded, HeadMoved, MessageDropped, TextAdded
from safesteer_edge.errors import EngineDiedError, SafeSteerError
from safesteer_edge.guard.events import Event, Refused, TextDelta, TurnEnded


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
