"""A session for asyncio: the same calls, each in the one thread that asks.

async with open_async_session() as session:
    print(await session.answer("Why is the sky blue?"))
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from safesteer_edge.errors import EngineError
from safesteer_edge.guard.events import Event, Step
from safesteer_edge.session.protocol import (
    Answer,
    AskOptions,
    ChatMessage,
    OpenedSession,
    Question,
    SessionInfo,
    TurnSettings,
)
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Result = TypeVar("Result")


class AsyncSession:
    """What `Session` does, awaited; opened by `async with`. One task asks at a time."""

    def __init__(self, open_it: Callable[[], OpenedSession]) -> None:
        self._open_it = open_it
        self._session: OpenedSession | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="session")

    @property
    def session(self) -> OpenedSession:
        """The session itself; only `cancel()` and properties are for other threads than its own."""
        if self._session is None:
            raise EngineError("the session is not open; use it in an 'async with'")
        return self._session

    @property
    def info(self) -> SessionInfo:
        """What runs."""
        return self.session.info

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation so far."""
        return self.session.messages

    async def ask(
        self, text: Question, *, steps: bool = True, **options: Unpack[AskOptions]
    ) -> AsyncGenerator[Event, None]:
        """Ask, and iterate over what happens, as `Session.ask`; leaving early stops the answer.

        steps: False leaves the `Step` events out, each of which costs a change of threads.
        """

        def begin() -> Generator[Event, None, None]:
            self.session.tells_steps = steps
            return self.session.ask(text, **options)

        events = await self._run(begin)
        told = (event for event in events if steps or not isinstance(event, Step))
        try:
            while (event := await self._run(lambda: next(told, None))) is not None:
                yield event
        finally:
            self.cancel()  # the token that is being decoded ends; nothing, if the turn is over
            await asyncio.shield(self._run(events.close))

    async def answer(self, text: Question, **options: Unpack[AskOptions]) -> Answer:
        """Ask, and return it all, as `Session.answer`."""
        return Answer.of([event async for event in self.ask(text, **options)])

    async def restore(self, messages: Sequence[ChatMessage]) -> None:
        """Bring the session to this conversation."""
        await self._run(lambda: self.session.restore(messages))

    async def reset(self) -> None:
        """Start a new conversation."""
        await self._run(lambda: self.session.reset())

    async def change(self, settings: TurnSettings) -> None:
        """Let the next turns use these settings."""
        await self._run(lambda: self.session.change(settings))

    def cancel(self) -> None:
        """Stop the answer that is being decoded, within one token."""
        self.session.cancel()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._run(self._open_it)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        await self._run(self.session.close)
        self._thread.shutdown(wait=False)

    async def _run(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def open_async_session(
    model: str | os.PathLike[str] | SessionSettings | None = None,
    *,
    isolated: bool = False,
    **settings: Any,
) -> AsyncSession:
    """A session to be opened by `async with`, which raises what `open_session` does.

    Takes what `open_session` does. isolated: with the engine in a process of its own.
    """

    def open_it() -> OpenedSession:  # deferred: the engine is imported in the session's thread
        if isolated:
            from safesteer_edge.session.isolated_session import open_isolated_session

            return open_isolated_session(model, **settings)
        from safesteer_edge.session.session import open_session

        return open_session(model, **settings)

    return AsyncSession(open_it)
