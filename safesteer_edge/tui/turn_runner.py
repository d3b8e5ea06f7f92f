"""Runs turns: starts them on the engine's thread, shows their events frame by frame, ends them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.tui.chat_state import ChatState, ask_turn, continue_turn
from safesteer_edge.tui.engine_thread import EngineThread, TurnDone
from safesteer_edge.tui.turn_record import TurnRecord, restored_messages
from safesteer_edge.tui.widgets.bars import StatusBar, live_figures, turn_figures
from safesteer_edge.tui.widgets.inspector import Inspector
from safesteer_edge.tui.widgets.risk_line import RiskLine
from safesteer_edge.tui.widgets.transcript import Transcript
from safesteer_edge.tui.widgets.turn_view import TurnView

if TYPE_CHECKING:
    from textual.screen import Screen
    from textual.timer import Timer

# Text is painted this often while an answer streams: smooth to the eye, and rare enough that
# painting takes little of the cores that decode.
FRAME_S = 1 / 12


class TurnRunner:
    """One turn at a time; further ones are refused by the caller. Handlers only."""

    def __init__(self, screen: Screen[None], engine: EngineThread, state: ChatState) -> None:
        self._screen = screen
        self._engine = engine
        self._state = state
        self._number = 0
        self._record: TurnRecord | None = None
        self._view: TurnView | None = None
        self._timer: Timer | None = None
        self._decode_started_s = 0.0

    @property
    def record(self) -> TurnRecord | None:
        """The turn that runs or waits for the model; None: none does."""
        return self._record

    async def ask(self, record: TurnRecord) -> None:
        """Add a turn to the chat and ask it."""
        state = self._state
        state.records.append(record)
        before, settings = state.messages_before(record), state.settings
        view = await self._screen.query_one(Transcript).add(record)
        self._begin(record, view)
        self._engine.run_turn(
            self._number, lambda session: ask_turn(session, record, before, settings)
        )

    def go_on(self, record: TurnRecord) -> None:
        """Continue the last answer."""
        state = self._state
        messages, settings = restored_messages(state.system, state.records), state.settings
        record.continued()
        self._begin(record, self._screen.query_one(Transcript).view_of(record))
        self._engine.run_turn(
            self._number, lambda session: continue_turn(session, messages, settings)
        )

    async def done(self, told: TurnDone) -> TurnRecord | None:
        """Show the end of a turn; returns it, None if it is one of a chat that was left."""
        if told.turn != self._number or self._record is None:
            self._engine.take_events()
            return None
        self.show_events()
        record, view = self._record, self._view
        self._forget()
        record.error = told.error
        if view is not None:
            await view.settled()
            view.show_outcome()
        return record

    def leave(self) -> None:
        """Stop what runs; its end is not shown any more."""
        if self._record is not None:
            self._engine.cancel()
            self._number += 1
            self._forget()

    def show_events(self) -> None:
        """Show what came since the last frame."""
        record, screen = self._record, self._screen
        if record is None:
            return
        events = self._engine.take_events()
        if not events:
            return
        if any(isinstance(event, PrefillDone) for event in events):
            self._decode_started_s = time.perf_counter()
        text = "".join([record.feed(event) for event in events])
        if self._view is not None and text:
            self._view.show_waiting("")
            self._view.write(text)
        screen.query_one(RiskLine).show(record, self._risk_limit())
        elapsed_s = time.perf_counter() - self._decode_started_s
        figures = live_figures(record, elapsed_s, self._n_ctx())
        screen.query_one(StatusBar).show_figures(figures)
        screen.query_one(Inspector).show_live(record)

    def _begin(self, record: TurnRecord, view: TurnView | None) -> None:
        self._number += 1
        self._record, self._view = record, view
        self._timer = self._screen.set_interval(FRAME_S, self.show_events)
        screen = self._screen
        has_model = self._state.info is not None
        screen.query_one(StatusBar).show_state("● answering" if has_model else "○ loading")
        screen.query_one(StatusBar).show_figures("")
        if has_model:
            screen.query_one(RiskLine).show(record, self._risk_limit())
        elif view is not None:
            view.show_waiting("waiting for the model to load …   Esc stops")
        screen.query_one(Transcript).follow()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._record = self._view = self._timer = None
        self._screen.query_one(RiskLine).hide()

    def _n_ctx(self) -> int | None:
        return self._state.info.n_ctx if self._state.info else None

    def _risk_limit(self) -> float | None:
        info = self._state.info
        return info.policy.risk_limit if info and info.policy else None

    def final_figures(self, record: TurnRecord) -> str:
        """The figures of a turn that is over."""
        return turn_figures(record, self._n_ctx())
