"""Runs turns: starts them on the engine's thread, shows their events frame by frame, ends them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.tui.chat_state import ChatState, ask, go_on
from safesteer_edge.tui.engine_thread import EngineThread, TurnDone
from safesteer_edge.tui.guard_words import is_uncalibrated, live_figures, turn_figures
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.bars import RiskLine, StatusBar
from safesteer_edge.tui.widgets.composer import Composer
from safesteer_edge.tui.widgets.inspector import Inspector
from safesteer_edge.tui.widgets.transcript import Transcript
from safesteer_edge.tui.widgets.turn_view import TurnView

if TYPE_CHECKING:
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


# While an answer streams, its text is painted this often at most; and so seldom that painting
# takes no more than this share of a core from the ones that decode, but not more seldom than that,
# unless a frame costs so much that a key would often meet one.
FRAME_S = 1 / 15
_PAINTING_SHARE = 0.02
_SLOWEST_FRAME_S = 0.5
_MAX_SHARE = 0.15
_SLOWEST_DEAR_FRAME_S = 0.7
# The figures stand beyond the input, which is drawn again with them.
_FIGURES_S = 1.0


class TurnRunner:
    """One turn at a time; further ones are refused by the caller. Handlers only."""

    def __init__(self, screen: ChatScreen, engine: EngineThread, state: ChatState) -> None:
        self._screen = screen
        self._engine = engine
        self._state = state
        self._number = 0
        self._turn: ShownTurn | None = None
        self._view: TurnView | None = None
        self._decode_started_s = 0.0
        self._figures_s = 0.0  # when they were last shown
        self._settings = state.settings  # of the turn

    @property
    def turn(self) -> ShownTurn | None:
        """The turn that runs or waits for the model; None: none does."""
        return self._turn

    async def ask(self, turn: ShownTurn, *, in_place_of: str | None) -> None:
        """Add a turn to the chat and ask it. in_place_of: a question in the chat's file."""
        state = self._state
        state.turns.append(turn)
        settings, system = state.settings, state.system
        view = await self._screen.query_one(Transcript).add(turn)
        self._begin(turn, view)
        self._engine.run_turn(
            self._number,
            lambda chat: ask(chat, turn, settings, system=system, in_place_of=in_place_of),
        )

    def go_on(self, turn: ShownTurn) -> None:
        """Continue the last answer."""
        settings = self._state.settings
        turn.continued()
        view = self._screen.query_one(Transcript).view_of(turn)
        self._begin(turn, view)
        if view is not None:
            view.show_outcome()
        self._engine.run_turn(self._number, lambda chat: go_on(chat, settings))

    async def done(self, told: TurnDone) -> ShownTurn | None:
        """Show the end of a turn; returns it, None if it is one of a chat that was left."""
        if told.turn != self._number or self._turn is None:
            self._engine.take_events()
            return None
        self.show_events()
        turn, view = self._turn, self._view
        self._forget()
        turn.error = told.error
        if told.error is not None:
            turn.end = "died"
        self._state.take_ids(turn, told.branch)
        self._state.chat_id = told.chat_id
        if view is not None:
            await view.settled()
            view.show_outcome()
        return turn

    def leave(self) -> None:
        """Stop what runs; its end is not shown any more."""
        if self._turn is not None:
            self._engine.cancel()
            self._number += 1
            self._forget()

    async def _paint(self, number: int) -> None:
        """Show a turn's events as they come, in frames, until it is over."""
        pause_s, frame_cpu_s = FRAME_S, time.thread_time()
        while self._number == number and self._turn is not None:
            await asyncio.sleep(pause_s)
            cpu_s = time.thread_time()
            with self._screen.app.batch_update():  # text and risk are drawn together
                is_painted = self.show_events()
                if is_painted and self._view is not None:
                    await self._view.settled()
            self._screen.check_idle()  # else it hears of the batch's end with the next key
            if is_painted:
                pause_s, frame_cpu_s = _pause_after(cpu_s - frame_cpu_s), cpu_s
            else:
                pause_s = FRAME_S

    def show_events(self) -> bool:
        """Show what came since the last frame; False: nothing did."""
        turn, screen = self._turn, self._screen
        if turn is None:
            return False
        events = self._engine.take_events()
        if not events:
            return False
        if any(isinstance(event, PrefillDone) for event in events):
            self._decode_started_s = self._figures_s = time.perf_counter()
            turn.policy = self._policy()
            turn.is_uncalibrated = is_uncalibrated(self._state.info, turn.guard)
        n_media, n_thought = len(turn.media), len(turn.reasoning)
        text = "".join([turn.feed(event) for event in events])
        if self._view is not None and text:
            self._view.write(text)
        if self._view is not None and (text or len(turn.reasoning) > n_thought):
            self._view.show_waiting("")
            self._view.show_reasoning()
        if self._view is not None and len(turn.media) > n_media:
            self._view.show_media()
        screen.query_one(RiskLine).show(turn, self._risk_limit(), screen.key("interrupt"))
        now_s = time.perf_counter()
        if now_s - self._figures_s >= _FIGURES_S:
            self._figures_s = now_s
            figures = live_figures(turn, now_s - self._decode_started_s, self._n_ctx())
            screen.query_one(StatusBar).show_figures(figures)
        screen.query_one(Inspector).show_live(turn)
        return True

    def final_figures(self, turn: ShownTurn) -> str:
        """The figures of a turn that is over."""
        return turn_figures(turn, self._n_ctx())

    def _begin(self, turn: ShownTurn, view: TurnView | None) -> None:
        self._number += 1
        self._turn, self._view, self._settings = turn, view, self._state.settings
        screen = self._screen
        screen.run_worker(self._paint(self._number))
        screen.query_one(Composer).cursor_blink = False  # a blink is a frame
        screen.query_one(StatusBar).show_figures("")
        if self._state.info is not None:
            screen.query_one(StatusBar).show_state("● answering")
            screen.query_one(RiskLine).show(turn, self._risk_limit(), screen.key("interrupt"))
        elif view is not None:
            view.show_waiting(
                f"waiting for the model …   {screen.key('interrupt')} takes the question back"
            )
        screen.query_one(Transcript).follow()

    def _forget(self) -> None:
        self._turn = self._view = None
        self._screen.query_one(RiskLine).hide()
        self._screen.query_one(Composer).cursor_blink = True

    def _n_ctx(self) -> int | None:
        return self._state.info.n_ctx if self._state.info else None

    def _policy(self) -> GuardPolicy | None:
        """What guards the turn: the bundle's policy, as its settings have it."""
        info, settings = self._state.info, self._settings
        if info is None or info.policy is None:
            return None
        return info.policy.tightened(strength=settings.strength, threshold=settings.threshold)

    def _risk_limit(self) -> float | None:
        info = self._state.info
        return info.policy.risk_limit if info and info.policy else None


def _pause_after(cost_s: float) -> float:
    """Seconds to the next frame. cost_s: of all that this thread did since the one before."""
    slowest_s = min(max(_SLOWEST_FRAME_S, cost_s / _MAX_SHARE), _SLOWEST_DEAR_FRAME_S)
    return min(max(FRAME_S, cost_s / _PAINTING_SHARE), slowest_s)
