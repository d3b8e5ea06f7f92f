"""The slash commands that the input could become, over it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from safesteer_edge.tui.slash_commands import SlashCommand, matching_commands


@dataclass
class CompletionChosen(Message):
    """A click on a command."""

    command: SlashCommand


class Completions(OptionList, can_focus=False):
    """Hidden while there are none."""

    DEFAULT_CSS = """
    Completions {
        display: none; height: auto; max-height: 8; margin: 0 1; padding: 0;
        border: round $border; background: $surface;
        text-wrap: nowrap; text-overflow: ellipsis;
        &.-shown { display: block; }
    }
    """

    def __init__(self) -> None:
        super().__init__(id="completions")
        self._commands: list[SlashCommand] = []

    def show(self, typed: str) -> None:
        """Show what this could become."""
        self._commands = matching_commands(typed)
        self.set_class(bool(self._commands), "-shown")
        self.clear_options()
        self.add_options(
            [
                Option(Content(f"{c.usage:<30.30} ") + Content.styled(c.help, "$foreground 60%"))
                for c in self._commands
            ]
        )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click."""
        event.stop()
        self.post_message(CompletionChosen(self._commands[event.option_index]))
