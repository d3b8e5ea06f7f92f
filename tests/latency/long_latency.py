"""How smooth the chat stays with very much text, over an engine that needs no model.

While an answer streams: how long a key takes to its letter on the screen, in a pseudo-terminal.
For what happens once (opening, reading, scrolling): how long the application is deaf meanwhile,
which is what a key would have waited at least.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from textual.widget import Widget
from textual.widgets import TextArea

from safesteer_edge.guard.events import TextDelta
from safesteer_edge.tui.app import ChatApp
from safesteer_edge.tui.model_runner import FRAME_S
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.terminal import spare_pauses
from safesteer_edge.tui.widgets.transcript import Transcript, TurnView
from tests.latency.long_chat import long_chat, long_lines, turns_of
from tests.latency.measured_terminal import MeasuredTerminal, p95

# What goes on while keys are typed, by the kinds of `long_chat`.
_KINDS = {
    "answer": "an answer of {:,} lines goes on",
    "code": "a code block of {:,} lines goes on",
    "chat": "an answer in a chat of {:,} lines",
}
_LISTEN_S = 0.005
_SIZE = (120, 40)
_MAX_PAGES = 15


@dataclass(frozen=True, slots=True)
class Waits:
    """done_s: until it was over. p95_ms, worst_ms: how long a key waits meanwhile."""

    what: str
    done_s: float
    p95_ms: float
    worst_ms: float


def measure_long(
    n_lines: int, *, kinds: Sequence[str] = tuple(_KINDS), n_keys: int = 60
) -> list[Waits]:
    """Measure it all, or of the answers that go on these kinds. Takes a minute."""
    typed = [_type_while(kind, n_lines, n_keys) for kind in kinds]
    spare_pauses()
    return [*typed, *asyncio.run(_measure_deafness(n_lines))]


def _type_while(kind: str, n_lines: int, n_keys: int) -> Waits:
    with tempfile.TemporaryDirectory() as folder:
        module = "tests.latency.long_chat"
        terminal = MeasuredTerminal(folder, ["-m", module, kind, str(n_lines)])
        try:
            terminal.wait_for(b"ready")
            terminal.type("Go on.\r")
            terminal.wait_for(b"tokens/s")
            started_s = time.perf_counter()
            keys = [terminal.time_key() for _ in range(n_keys)]
            done_s = time.perf_counter() - started_s
        finally:
            terminal.close()
    return Waits(_KINDS[kind].format(n_lines), done_s, 1000 * p95(keys), 1000 * max(keys))


async def _measure_deafness(n_lines: int) -> list[Waits]:
    found: list[Waits] = []
    async with _opened() as app:
        turn = ShownTurn("One long answer?")
        turn.feed(TextDelta("".join(long_lines(n_lines))))
        async with _timed("opening a chat with that answer", found):
            await _show(app, [turn])
        async with _timed("showing all of that answer", found):
            app.chat.query_one(TurnView).action_all_lines()
            await asyncio.sleep(2 * FRAME_S)
            await _painted(app)
        async with _timed("scrolling through it", found):
            await _scroll(app.screen.query_one(TextArea), n_lines)
    async with _opened() as app:
        async with _timed(f"opening a chat of {n_lines:,} lines", found):
            await _show(app, turns_of(n_lines))
        async with _timed("scrolling through what it shows", found):
            await _scroll(app.chat.query_one(Transcript), n_lines)
    return found


async def _show(app: ChatApp, turns: list[ShownTurn]) -> None:
    app.state.turns = turns
    await app.chat.show_chat()
    await _painted(app)


async def _scroll(widget: Widget, n_lines: int) -> None:
    for direction in (1, -1):
        for _ in range(min(_MAX_PAGES, n_lines // _SIZE[1])):
            widget.scroll_relative(y=direction * _SIZE[1], animate=False)
            await asyncio.sleep(FRAME_S)
        await asyncio.sleep(FRAME_S)


async def _painted(app: ChatApp) -> None:
    painted = asyncio.Event()
    app.screen.call_after_refresh(painted.set)
    await painted.wait()


@asynccontextmanager
async def _opened() -> AsyncIterator[ChatApp]:
    app = long_chat("answer", 0)
    async with app.run_test(size=_SIZE):
        await _painted(app)
        yield app


@asynccontextmanager
async def _timed(what: str, found: list[Waits]) -> AsyncIterator[None]:
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
    found.append(Waits(what, done_s, 1000 * p95(waits_s), 1000 * max(waits_s)))
