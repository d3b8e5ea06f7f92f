"""What a thinking model wrote before its answer: a line, which opens."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from safesteer_edge.chat.display_text import strip_control_characters
from safesteer_edge.chat.reasoning import thought_label

# While it is written, no more of it is laid out anew at every frame.
_LIVE_CHARACTERS = 1200
_LAST_WORDS_CHARACTERS = 200


class ReasoningBlock(Vertical, can_focus=True):
    """Nothing while there is no reasoning. Enter, a click or its turn's `t` opens it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "unfold", "Open", show=False),
    ]

    DEFAULT_CSS = """
    ReasoningBlock {
        height: auto; padding: 0 1 0 2; margin: 0 0 1 0; color: $foreground 65%; display: none;
        & .label { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        & .thoughts { height: auto; display: none; border-left: solid $border; padding: 0 1; }
        &.-open .thoughts { display: block; }
        &:hover .label { text-style: underline; }
        &:focus .label { text-style: bold reverse; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._reasoning = ""
        self._is_over = True
        self._label = Static("", classes="label")
        self._thoughts = Static("", classes="thoughts")

    def compose(self) -> ComposeResult:
        """The line, and what it hides."""
        yield self._label
        yield self._thoughts

    def show(self, reasoning: str, *, is_over: bool) -> None:
        """Show this much. is_over: the answer has begun, or will not."""
        if (reasoning, is_over) == (self._reasoning, self._is_over):
            return
        self._reasoning, self._is_over = reasoning, is_over
        self.display = bool(reasoning.strip())
        self._update()

    def on_click(self) -> None:
        """Open or close."""
        self.action_unfold()

    def action_unfold(self) -> None:
        """Open or close."""
        self.toggle_class("-open")
        self._update()

    def _update(self) -> None:
        is_open = self.has_class("-open")
        label = f"{'▾' if is_open else '▸'} {thought_label(self._reasoning)}"
        if not self._is_over:
            last = " ".join(self._reasoning[-_LAST_WORDS_CHARACTERS:].split())
            label = f"{'▾' if is_open else '▸'} thinking …  {'' if is_open else _end_of(last)}"
        self._label.update(Content(strip_control_characters(label)), layout=False)
        if is_open:
            text = self._reasoning.strip()
            if not self._is_over and len(text) > _LIVE_CHARACTERS:
                text = "… " + text[-_LIVE_CHARACTERS:]
            self._thoughts.update(Content(strip_control_characters(text)))


def _end_of(text: str, n_characters: int = 56) -> str:
    """The last words, which fit beside the label at 80 columns."""
    if len(text) <= n_characters:
        return text
    return "…" + text[-n_characters:].partition(" ")[2]
