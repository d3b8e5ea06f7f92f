"""One question answered twice, with the same seed: without the guard, and with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.session.protocol import ChatMessage
from safesteer_edge.tui.chat_state import ChatState, ask_unrecorded, compared_settings
from safesteer_edge.tui.engine_thread import EngineThread, TurnDone
from safesteer_edge.tui.guard_words import UNCALIBRATED, notice, sparkline, turn_notes
from safesteer_edge.tui.model_runner import FRAME_S
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.answer import LongAnswer
from safesteer_edge.tui.widgets.transcript import ReasoningBlock

# Turns of the chat count up from 1; these two are its own.
COMPARISON_TURNS = (-1, -2)


class CompareScreen(Screen[None]):
    """Left without, right with. Nothing of it joins the chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back to the chat"),
        Binding("f6", "leave", "Back to the chat", id="chat.compare"),
        Binding("down", "scroll_both(1)", show=False),
        Binding("up", "scroll_both(-1)", show=False),
        Binding("pagedown", "scroll_both(10)", show=False),
        Binding("pageup", "scroll_both(-10)", show=False),
    ]

    DEFAULT_CSS = """
    CompareScreen {
        background: $background;
        & .title { height: auto; background: $surface; padding: 0 1; text-style: bold; }
        & .asked { height: auto; padding: 1 2 0 2; }
        & Horizontal { height: 1fr; }
        & VerticalScroll { width: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
        & #left { border: double $error; border-title-color: $text-error; }
        & #right { border: round $primary; border-title-color: $primary; }
        & .figures { height: auto; color: $foreground 70%; padding: 0 0 1 0; }
        & .keys { height: 1; background: $surface; color: $foreground 60%; padding: 0 1; }
    }
    """

    def __init__(
        self,
        engine: EngineThread,
        state: ChatState,
        turns: Sequence[ShownTurn],
        before: list[ChatMessage],
    ) -> None:
        """turns: the question, without the guard and with it. before: what was said before it."""
        super().__init__()
        self._engine = engine
        self._before = before
        self._settings = compared_settings(state.settings)
        self._turns = turns
        policy = state.info.policy if state.info is not None else None
        self._risk_limit = policy.risk_limit if policy is not None else None
        is_uncalibrated = state.info is not None and state.info.is_calibrated is False
        self._guard_label = f"guard: {turns[1].guard}" + (
            f", {UNCALIBRATED}" if is_uncalibrated else ""
        )
        self._turn = 0
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Static(Content("Side by side · same question, same seed"), classes="title")
        question = Content(strip_control_characters(self._turns[0].question))
        yield Static(question, classes="asked")
        with Horizontal():
            for name, title in (
                ("left", "GUARD OFF: not checked"),
                ("right", self._guard_label),
            ):
                with VerticalScroll(id=name) as column:
                    column.border_title = title
                    yield Static(Content("waiting …"), classes="figures")
                    yield ReasoningBlock()
                    yield LongAnswer()
        yield Static(Content("Esc stops and goes back · ↑↓ scroll both"), classes="keys")

    def on_mount(self) -> None:
        self._timer = self.set_interval(FRAME_S, self._show_events)
        self._ask()

    async def told(self, done: TurnDone) -> None:
        """One of the two is over."""
        if done.turn != COMPARISON_TURNS[self._turn]:
            return
        self._show_events()
        turn = self._turns[self._turn]
        turn.error = done.error
        self._show(turn)
        if self._turn == 0 and turn.end != "cancelled":
            self._turn = 1
            self._ask()
        elif self._timer is not None:
            self._timer.stop()

    def action_leave(self) -> None:
        if not self._turns[self._turn].is_over:
            self._engine.cancel()
        self.dismiss()

    def action_scroll_both(self, lines: int) -> None:
        for column in self.query(VerticalScroll):
            column.scroll_relative(y=lines, animate=False)

    def _ask(self) -> None:
        turn, settings = self._turns[self._turn], self._settings[self._turn]
        self._column().query_one(".figures", Static).update(Content("answering …"))
        self._engine.run_turn(
            COMPARISON_TURNS[self._turn],
            lambda chat: ask_unrecorded(chat, turn, self._before, settings),
        )

    def _show_events(self) -> None:
        turn = self._turns[self._turn]
        events = self._engine.take_events()
        if turn.is_over or not events:
            return
        text = "".join([turn.feed(event) for event in events])
        self._column().query_one(LongAnswer).write(text)
        self._show(turn)

    def _show(self, turn: ShownTurn) -> None:
        reasoning = self._column().query_one(ReasoningBlock)
        reasoning.show(turn.reasoning, is_over=bool(turn.text) or turn.is_over)
        parts = [f"{len(turn.steps)} tokens"]
        if turn.scores:
            parts.append(f"{notice(turn.risk or 0, self._risk_limit)} {sparkline(turn.scores, 16)}")
        if turn.refusal is not None:
            parts.append("■ refused by the guard")
        if turn.error is not None:
            parts.append(strip_control_characters(turn.error))
        if turn.is_over:
            parts += turn_notes(turn, can_go_on=False)
        text = Content(" · ".join(parts))
        self._column().query_one(".figures", Static).update(text)

    def _column(self) -> VerticalScroll:
        return self.query_one("#left" if self._turn == 0 else "#right", VerticalScroll)
