"""The line at the top (which chat, which model, which guard) and at the bottom (how it goes)."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.guard.policy import GuardMode
from safesteer_edge.tui.guard_words import MODE_LABELS, UNCALIBRATED


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
