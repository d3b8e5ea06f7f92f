"""What Ctrl-C does while a session answers on the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from safesteer_edge.chat_session import ChatSession


@contextmanager
def interrupt_cancels(session: ChatSession) -> Iterator[None]:
    """Ctrl-C stops the answer between two tokens; a second one interrupts at once."""

    def on_interrupt(_signal: int, _frame: object) -> None:
        session.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
