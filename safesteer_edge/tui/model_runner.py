"""Loads models and runs turns on the engine's thread, and shows what it says: frame by frame."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from safesteer_edge.guard.events import PrefillDone
from safesteer_edge.tui.chat_state import ask, go_on
from safesteer_edge.tui.commands import full_screen
from safesteer_edge.tui.engine_thread import (
    ModelOpened,
    NotSaved,
    Told,
    TurnDone,
    TurnStarter,
)
from safesteer_edge.tui.guard_words import is_uncalibrated, live_figures, turn_figures
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.terminal import collect_now

if TYPE_CHECKING:
    from textual.timer import Timer

    from safesteer_edge.session.settings import SessionSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen
    from safesteer_edge.tui.widgets.transcript import TurnView


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
_READING_S = 0.5  # after an answer nobody types yet


class ModelRunner:
    """What the chat's screen has to do with the engine. Handlers only; one turn at a time."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._engine, self._state = screen.engine, screen.state
        self._loading: Timer | None = None
        self._number = 0
        self._turn: ShownTurn | None = None
        self._view: TurnView | None = None
        self._decode_started_s = 0.0
        self._figures_s = 0.0  # when they were last shown
        self._settings = self._state.settings  # of the turn

    @property
    def turn(self) -> ShownTurn | None:
        """The turn that runs or waits for the model; None: none does."""
        return self._turn

    def load(self, settings: SessionSettings, name: str) -> None:
        """Free the model that is loaded, and load this one; the seconds that it takes are shown."""
        screen = self._screen
        screen.session_settings = settings
        self._state.info = None
        screen.show_state()
        started_s = time.monotonic()

        def show() -> None:
            waited_s = time.monotonic() - started_s
            seconds = f", {waited_s:.0f} s" if waited_s > 1 else ""
            screen.status.show_state(f"○ loading {name}{seconds}")

        show()
        self._stop_counting()
        self._loading = screen.set_interval(0.5, show)
        self._engine.open(settings)

    async def ask(self, turn: ShownTurn, *, in_place_of: str | None) -> None:
        """Add a turn to the chat and ask it. in_place_of: a question in the chat's file."""
        state = self._state
        state.turns.append(turn)
        settings, system, is_told = state.settings, state.system, state.is_language_told
        self._run(
            turn,
            await self._screen.transcript.add(turn),
            lambda chat: ask(
                chat,
                turn,
                settings,
                system=system,
                in_place_of=in_place_of,
                is_language_told=is_told,
            ),
        )

    def go_on(self, turn: ShownTurn) -> None:
        settings = self._state.settings
        turn.continued()
        view = self._screen.transcript.view_of(turn)
        self._run(turn, view, lambda chat: go_on(chat, settings))
        if view is not None:
            view.show_outcome()

    def leave(self) -> None:
        """Stop what runs; its end is not shown any more."""
        if self._turn is not None:
            self._engine.cancel()
            self._number += 1
            self._forget()

    async def told(self, told: Told) -> None:
        screen, state = self._screen, self._state
        if isinstance(told, NotSaved):
            screen.complain(f"this chat is not being saved: {told.problem}")
            return
        if isinstance(told, TurnDone):
            await self._turn_done(told)
            return
        self._stop_counting()
        if isinstance(told, ModelOpened):
            state.info = told.info
            screen.show_problem("")
            screen.status.show_state("● answering" if self._turn else "● ready")
            if told.chat_left is not None:  # it is kept
                state.turns.clear()
                state.title, state.chat_id = "", None
                screen.run_worker(screen.show_chat())
                screen.complain(
                    "started a new chat, because this model cannot continue the last one: "
                    f"{told.chat_left}"
                )
        else:
            state.info = None
            screen.status.show_state("✗ no model", failed=True)
            screen.show_problem(told.error, told.title)
            if told.lacks_guard:
                full_screen.offer_guard(screen, screen.session_settings.model)
        screen.show_state()

    # -- a turn -----------------------------------------------------------------------------------

    def _run(self, turn: ShownTurn, view: TurnView | None, starter: TurnStarter) -> None:
        self._number += 1
        self._turn, self._view, self._settings = turn, view, self._state.settings
        screen = self._screen
        screen.run_worker(self._paint(self._number))
        screen.composer.cursor_blink = False  # a blink is a frame
        screen.status.show_figures("")
        if self._state.info is not None:
            screen.status.show_state("● answering")
            self._show_risk(turn)
        elif view is not None:
            key = screen.key_labels["interrupt"]
            view.show_waiting(f"waiting for the model …   {key} cancels")
        screen.transcript.anchor()
        self._engine.run_turn(self._number, starter)

    async def _turn_done(self, told: TurnDone) -> None:
        if told.turn != self._number or self._turn is None:  # one of a chat that was left
            self._engine.take_events()
            self._state.info = told.info or self._state.info
            return
        self.show_events()
        turn, view, screen, state = self._turn, self._view, self._screen, self._state
        self._forget()
        turn.error = told.error
        if told.error is not None:
            turn.end = "died"
        state.take_ids(turn, told.branch)
        state.chat_id, state.info = told.chat_id, told.info or state.info
        if view is not None:
            await view.answer.settled()
            view.show_outcome()
        screen.status.show_state("● ready" if state.info else "✗ no model")
        screen.status.show_figures(turn_figures(turn, self._n_ctx()))
        if screen.inspector.is_shown:
            screen.show_in_inspector(turn)
        screen.show_state()
        screen.set_timer(_READING_S, collect_now)
        await (screen.send_queued() if turn.error is None else screen.unqueue())

    async def _paint(self, number: int) -> None:
        """Show a turn's events as they come, in frames, until it is over."""
        pause_s, frame_cpu_s = FRAME_S, time.thread_time()
        while self._number == number and self._turn is not None:
            await asyncio.sleep(pause_s)
            if not self._screen.app.is_running:  # the screen is being taken down, widget by widget
                return
            cpu_s = time.thread_time()
            with self._screen.app.batch_update():  # text and risk are drawn together
                is_painted = self.show_events()
                if is_painted and self._view is not None:
                    await self._view.answer.settled()
            self._screen.check_idle()  # else it hears of the batch's end with the next key
            if is_painted:
                pause_s, frame_cpu_s = _pause_after(cpu_s - frame_cpu_s), cpu_s
            else:
                pause_s = FRAME_S

    def show_events(self) -> bool:
        """Show what came since the last frame; False: nothing did."""
        turn, view, screen = self._turn, self._view, self._screen
        if turn is None:
            return False
        events = self._engine.take_events()
        if not events:
            return False
        if any(isinstance(event, PrefillDone) for event in events):
            self._decode_started_s = self._figures_s = time.perf_counter()
            turn.policy = self._state.policy_with(self._settings)
            turn.is_uncalibrated = is_uncalibrated(self._state.info, turn.guard)
        n_media, n_thought = len(turn.media), len(turn.reasoning)
        text = "".join([turn.feed(event) for event in events])
        if view is not None and text:
            view.answer.write(text)
        if view is not None and (text or len(turn.reasoning) > n_thought):
            view.show_waiting("")
            view.show_reasoning()
        if view is not None and len(turn.media) > n_media:
            view.show_media()
        self._show_risk(turn)
        now_s = time.perf_counter()
        if now_s - self._figures_s >= _FIGURES_S:
            self._figures_s = now_s
            decode_s = now_s - self._decode_started_s
            screen.status.show_figures(live_figures(turn, decode_s, self._n_ctx()))
        screen.inspector.show_live(turn)
        return True

    def _show_risk(self, turn: ShownTurn) -> None:
        policy = self._state.info.policy if self._state.info else None
        limit = policy.risk_limit if policy else None
        self._screen.risk.show(turn, limit, self._screen.key_labels["interrupt"])

    def _forget(self) -> None:
        self._turn = self._view = None
        self._screen.risk.set_class(False, "-shown")
        self._screen.composer.cursor_blink = True

    def _stop_counting(self) -> None:
        if self._loading is not None:
            self._loading.stop()

    def _n_ctx(self) -> int | None:
        return self._state.info.n_ctx if self._state.info else None


def _pause_after(cost_s: float) -> float:
    """Seconds to the next frame. cost_s: of all that this thread did since the one before."""
    slowest_s = min(max(_SLOWEST_FRAME_S, cost_s / _MAX_SHARE), _SLOWEST_DEAR_FRAME_S)
    return min(max(FRAME_S, cost_s / _PAINTING_SHARE), slowest_s)
