"""What the chat's screen does when the engine's thread says something; and loading models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.tui.commands import looking
from safesteer_edge.tui.engine_thread import ModelFailed, ModelOpened, NotSaved, Told, TurnDone
from safesteer_edge.tui.looks import key_label
from safesteer_edge.tui.screens.compare_screen import COMPARISON_TURNS, CompareScreen
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.terminal import collect_now
from safesteer_edge.tui.widgets.bars import StatusBar
from safesteer_edge.tui.widgets.inspector import Inspector

if TYPE_CHECKING:
    from textual.timer import Timer

    from safesteer_edge.session.settings import SessionSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


_READING_S = 0.5  # after an answer nobody types yet


class EngineListener:
    """Handlers of the screen that have to do with the engine."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._loading: Timer | None = None

    def load(self, settings: SessionSettings, name: str) -> None:
        """Free the model that is loaded, and load this one; the seconds that it takes are shown."""
        screen = self._screen
        screen.session_settings = settings
        screen.state.info = None
        screen.show_bars()
        started_s = time.monotonic()
        status = screen.query_one(StatusBar)

        def show() -> None:
            waited_s = time.monotonic() - started_s
            status.show_state(f"○ loading {name}" + (f", {waited_s:.0f} s" if waited_s > 1 else ""))

        show()
        if self._loading is not None:
            self._loading.stop()
        self._loading = screen.set_interval(0.5, show)
        screen.engine.open(settings)

    async def told(self, told: Told) -> None:
        """The engine's thread says something."""
        screen = self._screen
        status = screen.query_one(StatusBar)
        if isinstance(told, TurnDone) and told.turn in COMPARISON_TURNS:
            if isinstance(screen.app.screen, CompareScreen):
                await screen.app.screen.told(told)
            return
        if isinstance(told, ModelOpened | ModelFailed) and self._loading is not None:
            self._loading.stop()
        if isinstance(told, ModelOpened):
            screen.state.info = told.info
            self._show_problem("")
            status.show_state("● answering" if screen.runner.turn else "● ready")
            screen.show_bars()
            if told.chat_left is not None:
                self._leave_chat(told.chat_left)
        elif isinstance(told, NotSaved):
            screen.complain(f"this chat is not saved: {told.problem}")
        elif isinstance(told, ModelFailed):
            screen.state.info = None
            status.show_state("✗ no model", failed=True)
            screen.show_bars()
            self._show_problem(told.error, told.title)
        else:
            turn = await screen.runner.done(told)
            if told.info is not None:
                screen.state.info = told.info
            if turn is not None:
                self._turn_ended(turn)

    def _leave_chat(self, why_not: str) -> None:
        """The model cannot go on with the chat, which is kept: another begins."""
        screen = self._screen
        screen.state.turns.clear()
        screen.state.title, screen.state.chat_id = "", None
        screen.run_worker(screen.show_chat())
        screen.complain(
            f"a new chat begins, since this model cannot go on with the last: {why_not}"
        )

    def _show_problem(self, text: str, title: str = "") -> None:
        """Why there is no model, until there is one; empty: there is one."""
        screen = self._screen
        problem = screen.query_one("#problem", Static)
        problem.update(Content(strip_control_characters(text)))
        problem.border_title = title
        problem.border_subtitle = f"{key_label(screen.user_settings.keys.models)} chooses another"
        problem.display = bool(text)

    def _turn_ended(self, turn: ShownTurn) -> None:
        screen = self._screen
        status = screen.query_one(StatusBar)
        status.show_state("● ready" if screen.state.info else "✗ no model")
        status.show_figures(screen.runner.final_figures(turn))
        if screen.query_one(Inspector).is_shown:
            looking.show_in_inspector(screen, turn)
        screen.show_bars()
        screen.set_timer(_READING_S, collect_now)
