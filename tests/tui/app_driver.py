"""Driving the real application in tests: type, press, wait for what must appear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot
from textual.widget import Widget

from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions
from safesteer_edge.tui.widgets.composer import Composer
from tests.tui.scripted_session import ScriptedModel

_PATIENCE_S = 120.0


class Driver:
    """The application with hands and eyes."""

    def __init__(self, app: ChatApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        await self.pilot.press(*("space" if c == " " else c for c in text))

    async def send(self, text: str) -> None:
        """Put a text into the input and press Enter."""
        self.app.chat.query_one(Composer).replace_text(text)
        await self.pilot.press("enter")

    async def sees(self, text: str) -> None:
        """Wait until the screen shows a text."""
        await self.until(lambda: self._shows(text), f"the screen to show {text!r}")

    async def sees_no(self, text: str) -> None:
        """Wait until the screen shows it no longer."""
        await self.until(lambda: text not in self.screen_text(), f"{text!r} to go")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition. what: it in words, for the failure."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"waited in vain for {what}; the screen:\n{self.screen_text()}"
                )
            await self.pilot.pause(0.01)

    async def ready(self) -> None:
        """Wait until no answer is being written."""
        await self.until(
            lambda: self.app.chat.runner.turn is None and self.app.state.info is not None,
            "the answer to end",
        )
        await self.pilot.pause()

    def _shows(self, text: str) -> bool:
        seen = self.screen_text()
        said = [notification.message for notification in self.app._notifications]
        return text in seen or any(text in message for message in said)

    def screen_text(self) -> str:
        """What stands on the screen."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in lines)

    def focused(self) -> Widget | None:
        """What has the focus."""
        return self.app.focused


@asynccontextmanager
async def opened(
    model: ScriptedModel | None = None,
    *,
    size: tuple[int, int] = (100, 30),
    settings: SessionSettings | None = None,
    **options: Any,
) -> AsyncIterator[Driver]:
    """The application over a scripted model, ready."""
    made = model or ScriptedModel()
    app = ChatApp(ChatOptions(settings or SessionSettings(), made.open, **options))
    async with app.run_test(size=size, notifications=True) as pilot:
        yield Driver(app, pilot)


def driven(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test."""
    asyncio.run(test)
