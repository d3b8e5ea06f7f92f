"""The line at the top (which chat, which model, which guard) and at the bottom (how it goes)."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.guard.policy import GuardMode
from safesteer_edge.tui.guard_words import (
    MODE_LABELS,
    UNCALIBRATED,
    passages,
    risk_word,
    sparkline,
)
from safesteer_edge.tui.shown_turn import ShownTurn


class TopBar(Horizontal):
    """Which chat, which model, which guard; always there."""

    DEFAULT_CSS = """
    TopBar {
        height: 1; background: $surface; padding: 0 1;
        & #chat-title {
            width: 1fr; color: $foreground; text-style: bold;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #model-name {
            width: auto; max-width: 50%; color: $foreground 75%; padding: 0 2;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #guard-mode { width: auto; color: $primary; text-style: bold; }
        &.-monitor #guard-mode, &.-uncalibrated #guard-mode {
            background: $warning; color: $background; padding: 0 1;
        }
        &.-off #guard-mode { background: $error; color: $background; padding: 0 1; }
    }
    """

    def compose(self) -> ComposeResult:
        """From left to right; the chat hides the last where the terminal is narrow."""
        yield Static(id="chat-title")
        yield Static(id="model-name")
        yield Static(id="guard-mode")

    def show(
        self, *, title: str, model: str, guard: GuardMode, is_uncalibrated: bool = False
    ) -> None:
        """Show these."""
        self.set_class(is_uncalibrated, "-uncalibrated")
        self.set_class(guard == "monitor", "-monitor")
        self.set_class(guard == "off", "-off")
        self.query_one("#chat-title", Static).update(Content(strip_control_characters(title)))
        self.query_one("#model-name", Static).update(Content(strip_control_characters(model)))
        label = MODE_LABELS[guard] + (f", {UNCALIBRATED}" if is_uncalibrated else "")
        self.query_one("#guard-mode", Static).update(Content(label))


class StatusBar(Horizontal):
    """What happens now, the last turn's figures, and where help is."""

    DEFAULT_CSS = """
    StatusBar {
        height: 1; background: $surface; padding: 0 1; color: $foreground 75%;
        & #state { width: auto; padding: 0 2 0 0; }
        & #figures {
            width: 1fr; color: $foreground 60%; margin: 0 1 0 0;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #help-key, #menu-key { width: auto; color: $foreground 60%; }
        &.-failed #state { color: $text-error; text-style: bold; }
    }
    """

    def compose(self) -> ComposeResult:
        """From left to right; the chat hides the last where the terminal is narrow."""
        yield Static(id="state")
        yield Static(id="figures")
        yield Static(id="help-key")
        yield Static(Content(" · Ctrl+P menu"), id="menu-key")

    def show_help_key(self, label: str) -> None:
        """Say which key helps."""
        self.query_one("#help-key", Static).update(Content(f"{label} help"))

    def show_state(self, text: str, *, failed: bool = False) -> None:
        """Show what happens now, in a few words."""
        self.set_class(failed, "-failed")
        self.query_one("#state", Static).update(Content(strip_control_characters(text)))

    def show_figures(self, text: str) -> None:
        """Show figures; empty: none."""
        self.query_one("#figures", Static).update(Content(text), layout=False)


# -- the live line over the input while an answer streams: the guard's scores, and the risk --------


class RiskLine(Static):
    """Hidden while nothing streams."""

    DEFAULT_CSS = """
    RiskLine { height: 1; padding: 0 2; color: $foreground 75%; display: none;
               &.-shown { display: block; } }
    """

    def show(self, turn: ShownTurn, limit: float | None, stop_key: str) -> None:
        """Show where the turn stands. limit: the risk that ends a turn."""
        self.set_class(True, "-shown")
        self.update(self._line(turn, limit, stop_key), layout=False)

    def hide(self) -> None:
        """Nothing streams any more."""
        self.set_class(False, "-shown")

    def _line(self, turn: ShownTurn, limit: float | None, stop_key: str) -> Content:
        if turn.prefill is None:
            return Content(f"reading the prompt …   {stop_key} stops")
        scores = turn.scores[-24:]
        if not scores:
            words = "answering, unguarded" if turn.guard == "off" else "the guard is looking"
            return Content(f"{words} …   {stop_key} stops")
        risk = turn.risk or 0.0
        word = risk_word(risk, limit)
        style = {"raised": "$text-warning", "near the limit": "bold $text-error"}.get(word, "")
        parts = [Content("risk "), Content.styled(f"{risk:.2f} {word}", style)]
        if limit is not None:
            parts.append(Content(f" (limit {limit:.2f})"))
        if turn.n_interventions:
            parts.append(Content.styled(f"  ◆ {passages(turn.n_interventions)}", "$text-warning"))
        elif turn.text == "" and turn.guard in ("steer", "refuse"):
            parts.append(Content("  weighing before showing"))
        parts.append(Content(f"  {sparkline(scores, 24)}"))
        return Content("").join(parts)


# -- what an empty chat shows ----------------------------------------------------------------------

_LINES = (
    ("Ask about text or a picture.", "Type below, and press Enter."),
    ("attach", "attach a picture, a PDF or a text; or drop, paste or type its path"),
    ("chats", "your chats"),
    ("models", "models: the built-in one is small and often wrong"),
    ("settings", "settings: how strict the guard is, how words are drawn"),
    ("help", "all keys and commands"),
)


class Welcome(Vertical):
    """A few lines, in the middle."""

    DEFAULT_CSS = """
    Welcome {
        height: 100%; align: center middle;
        & Static { width: auto; }
        & .name { text-style: bold; color: $primary; }
        & .lines { margin: 1 0 0 0; color: $foreground 80%; }
    }
    """

    def compose(self) -> ComposeResult:
        """Name, then what to do."""
        yield Static(Content("◆ SafeSteer Edge"), classes="name")
        yield Static(classes="lines")

    def show_keys(self, labels: Mapping[str, str]) -> None:
        """Say what to do, and by which keys. labels: of the commands' keys."""
        head, *rest = _LINES
        lines = [Content(f"{head[0]} {head[1]}"), Content("")]
        width = max(7, *(len(labels[name]) for name, _ in rest))
        lines += [
            Content.styled(f"{labels[name]:>{width}}", "bold") + Content(f"  {text}")
            for name, text in rest
        ]
        self.query_one(".lines", Static).update(Content("\n").join(lines))
