"""How smooth the chat stays with very much text: the application without a terminal or a model.

What is measured is how long the application is deaf: the time that a key or a click would have
waited before anybody looked at it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import quantiles

from textual.widget import Widget
from textual.widgets import TextArea

from safesteer_edge.guard.events import TextDelta
from safesteer_edge.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.turn_runner import FRAME_S
from safesteer_edge.tui.widgets.transcript import Transcript
from safesteer_edge.tui.widgets.turn_view import TurnView

_LISTEN_S = 0.005
_LINES_A_FRAME = 2  # thirty lines a second: more than models write on such machines
_STREAMED_LINES = 200
_SIZE = (120, 40)
_BLOCK = (
    "The keeper counted the ships that passed, **one** by *one*.",
    "",
    "- first the boats of the village",
    "- then `the steamers` from the south",
    "",
    "```python",
    "def ships(night: int) -> int:",
    "    return night * 3  # roughly",
    "```",
    "",
)


@dataclass(frozen=True, slots=True)
class Deafness:
    """done_s: until it was over. worst_ms, p95_ms: how long a key would have waited."""

    what: str
    done_s: float
    p95_ms: float
    worst_ms: float


def long_text(n_lines: int, *, is_code: bool = False) -> str:
    """An answer of so many lines, of every kind; or all of it one block of code."""
    if is_code:
        return "\n".join(["```python", *(_BLOCK[6 + i % 2] for i in range(n_lines - 1))])
    return "\n".join(_BLOCK[i % len(_BLOCK)] for i in range(n_lines))


def measure_long(n_lines: int) -> list[Deafness]:
    """Measure it all. Takes a minute."""
    return asyncio.run(_measure_all(n_lines))


async def _measure_all(n_lines: int) -> list[Deafness]:
    found: list[Deafness] = []
    for is_code in (False, True):
        async with (
            _opened() as app,
            _timed(
                f"streaming the last of {n_lines:,} lines{' of code' if is_code else ''}", found
            ),
        ):
            await _stream(app, long_text(n_lines, is_code=is_code))
    async with _opened() as app:
        turn = ShownTurn("One long answer?")
        turn.feed(TextDelta(long_text(n_lines)))
        async with _timed("opening a chat with that answer", found):
            await _show(app, [turn])
        async with _timed("showing all of that answer", found):
            app.chat.query_one(TurnView).action_all_lines()
            await asyncio.sleep(2 * FRAME_S)
            await _painted(app)
        async with _timed("scrolling through it", found):
            await _scroll(app.screen.query_one(TextArea))
    async with _opened() as app:
        turns = [ShownTurn(f"Question {i}?") for i in range(n_lines // 20)]
        for turn in turns:
            turn.feed(TextDelta(long_text(18)))
        async with _timed(f"opening a chat of {n_lines:,} lines", found):
            await _show(app, turns)
        async with _timed("scrolling through what it shows", found):
            await _scroll(app.chat.query_one(Transcript))
    return found


async def _stream(app: ChatApp, text: str) -> None:
    """What a turn that streams does, frame by frame, when most of it is there already."""
    turn = ShownTurn("One long answer?")
    view = await app.chat.query_one(Transcript).add(turn)
    lines = text.splitlines(keepends=True)
    n_before = max(0, len(lines) - _STREAMED_LINES)
    view.write(turn.feed(TextDelta("".join(lines[:n_before]))))
    for start in range(n_before, len(lines), _LINES_A_FRAME):
        view.write(turn.feed(TextDelta("".join(lines[start : start + _LINES_A_FRAME]))))
        await asyncio.sleep(FRAME_S)
    await view.settled()
    await _painted(app)


async def _show(app: ChatApp, turns: list[ShownTurn]) -> None:
    app.state.turns = turns
    await app.chat.show_chat()
    await _painted(app)


async def _scroll(widget: Widget) -> None:
    for direction in (1, -1):
        for _ in range(15):
            widget.scroll_relative(y=direction * _SIZE[1], animate=False)
            await asyncio.sleep(FRAME_S)
        await asyncio.sleep(FRAME_S)


async def _painted(app: ChatApp) -> None:
    painted = asyncio.Event()
    app.screen.call_after_refresh(painted.set)
    await painted.wait()


@asynccontextmanager
async def _opened() -> AsyncIterator[ChatApp]:
    def no_model(_: SessionSettings) -> None:
        raise RuntimeError("no model is measured here")

    app = ChatApp(ChatOptions(SessionSettings(), no_model))  # pyright: ignore[reportArgumentType]  # never called back
    async with app.run_test(size=_SIZE):
        await _painted(app)
        yield app


@asynccontextmanager
async def _timed(what: str, found: list[Deafness]) -> AsyncIterator[None]:
    """Listen while something happens."""
    waits_s: list[float] = []

    async def listen() -> None:
        while True:
            started_s = time.perf_counter()
            await asyncio.sleep(_LISTEN_S)
            waits_s.append(max(0.0, time.perf_counter() - started_s - _LISTEN_S))

    listener = asyncio.create_task(listen())
    started_s = time.perf_counter()
    await asyncio.sleep(2 * _LISTEN_S)
    yield
    await asyncio.sleep(2 * _LISTEN_S)
    done_s = time.perf_counter() - started_s
    listener.cancel()
    p95_s = quantiles(waits_s, n=20)[-1]
    found.append(Deafness(what, done_s, 1000 * p95_s, 1000 * max(waits_s)))
