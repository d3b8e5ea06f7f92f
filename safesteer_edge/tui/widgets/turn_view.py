"""One turn in the transcript: the question, its pictures, the answer, and how it went."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.templates.reasoning import thought_label
from safesteer_edge.tui.engine_thread import TurnAction
from safesteer_edge.tui.guard_words import refusal_advice, turn_notes
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.answer import LongAnswer, arranged_once
from safesteer_edge.tui.widgets.attachments import media_lines, media_views

# -- what a thinking model wrote before its answer: a line, which opens ----------------------------

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


_REFUSAL_ACTIONS = (  # short: beside the inspector there is little room
    ("Reword", "edit"),
    ("Why?", "inspect"),
    ("Try again", "regenerate"),
    ("New chat", "new"),
)


class _ActionButton(Button):
    """A button of a refused turn."""

    def __init__(self, label: str, action: str) -> None:
        super().__init__(label, compact=True)
        self.turn_action = action


class TurnView(Vertical, can_focus=True):
    """A turn. Tab reaches it; its keys show under it while it has the focus."""

    virtual_size = arranged_once()

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "turn('edit')", "Edit"),
        Binding("r", "turn('regenerate')", "Regenerate"),
        Binding("n", "turn('continue')", "Continue"),
        Binding("f", "turn('fork')", "Fork"),
        Binding("c", "turn('copy')", "Copy"),
        Binding("i,enter", "turn('inspect')", "Why"),
        Binding("t", "thoughts", "Thoughts"),
        Binding("a", "all_lines", "All lines"),
        Binding("up", "screen.focus_previous('TurnView')", show=False),
        Binding("down", "screen.focus_next('TurnView, Composer')", show=False),
        Binding("escape", "screen.focus_composer", show=False),
    ]

    DEFAULT_CSS = """
    TurnView {
        height: auto;
        margin: 0 0 1 0;
        border-left: outer transparent;
        padding: 0 1 0 0;
        & .question {
            background: $surface;
            border-left: outer $primary;
            padding: 0 1;
            margin: 0 0 1 0;
            height: auto;
        }
        & .media-line { color: $foreground 70%; height: auto; padding: 0 1; }
        & AnswerMarkdown { padding: 0 1 0 2; }
        & .waiting { color: $foreground 60%; padding: 0 2; }
        & .note { color: $foreground 65%; padding: 0 2; height: auto; }
        & .note.-steered { color: $text-warning; }
        & .banner {
            border: round $warning; padding: 0 1; margin: 0 1 0 1; height: auto;
            color: $foreground;
            &.-error { border: round $error; }
            & .actions { height: 1; margin: 1 0 0 0; }
            & Button { margin: 0 2 0 0; min-width: 6; padding: 0; }
        }
        & .turn-keys { display: none; color: $foreground 60%; padding: 0 2; height: 1; }
        &:focus { border-left: outer $primary 60%; & .turn-keys { display: block; } }
    }
    """

    def __init__(self, turn: ShownTurn, *, show_images: bool) -> None:
        super().__init__()
        self.turn = turn
        self._show_images = show_images
        self._reasoning = ReasoningBlock()
        self._answer = LongAnswer(turn.shown)

    def compose(self) -> ComposeResult:
        """Question, pictures, answer, notes, keys."""
        turn = self.turn
        question = strip_control_characters(turn.question)
        if question:
            yield Static(Content(question), classes="question")
        if turn.files:
            yield Static(media_lines(turn), classes="media-line")
            if self._show_images:
                yield from media_views(turn.images)
        yield self._reasoning
        yield self._answer
        yield Static("", classes="waiting", markup=False)
        yield Vertical(classes="outcome")
        yield Static("", classes="turn-keys")

    def on_mount(self) -> None:
        """Say how a turn from a file went."""
        self.query_one(".outcome").styles.height = "auto"
        self.show_outcome()

    def write(self, text: str) -> None:
        """Add to the answer."""
        self._answer.write(text)

    def show_reasoning(self) -> None:
        """Show how far the reasoning has come."""
        turn = self.turn
        if turn.reasoning:
            self._reasoning.show(turn.reasoning, is_over=bool(turn.text) or turn.is_over)

    def action_thoughts(self) -> None:
        """Open or close the reasoning."""
        if self.turn.reasoning:
            self._reasoning.action_unfold()

    def action_all_lines(self) -> None:
        """Read the whole of a very long answer."""
        self._answer.read_all()

    def show_media(self) -> None:
        """Say what became of the pictures and sounds."""
        for line in self.query(".media-line").results(Static):
            line.update(media_lines(self.turn))

    async def settled(self) -> None:
        """Wait until the answer shows all that was written."""
        await self._answer.settled()

    def show_waiting(self, text: str) -> None:
        """Say what is being waited for; empty: nothing."""
        waiting = self.query_one(".waiting", Static)
        if waiting.content != text or waiting.display != bool(text):
            waiting.update(text)
            waiting.display = bool(text)

    def show_outcome(self) -> None:
        """Show what there is to say about the turn's end."""
        turn = self.turn
        self.show_reasoning()
        if turn.is_over:
            self.show_waiting("")
            self._answer.ended()
        outcome = self.query_one(".outcome")
        outcome.remove_children()
        notes = turn_notes(turn) if turn.is_over else []
        if notes:
            steered = turn.n_interventions > 0
            sign = "◆ " if steered else ""
            hint = "  ·  /inspect shows which" if steered and turn.steps else ""
            note = Static(Content(sign + "  ·  ".join(notes) + hint), classes="note")
            note.set_class(steered, "-steered")
            outcome.mount(note)
        if turn.refusal is not None:
            outcome.mount(self._refusal_banner())
        if turn.error is not None:
            banner = Static(Content(strip_control_characters(turn.error)), classes="banner -error")
            banner.border_title = "The answer broke off" if turn.text else "Not answered"
            outcome.mount(banner)
        self.query_one(".turn-keys", Static).update(Content(self._keys()))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """An action offered after a refusal."""
        if isinstance(event.button, _ActionButton):
            event.stop()
            self.action_turn(event.button.turn_action)

    def action_turn(self, action: str) -> None:
        """Ask the screen to do something with this turn."""
        self.post_message(TurnAction(action, self.turn))

    def _refusal_banner(self) -> Vertical:
        refusal = self.turn.refusal
        assert refusal is not None
        detail = strip_control_characters(refusal.detail)
        text = f"{detail[:1].upper()}{detail[1:]}. {refusal_advice(self.turn)}"
        banner = Vertical(
            Static(Content(text)),
            Horizontal(
                *(_ActionButton(label, action) for label, action in _REFUSAL_ACTIONS),
                classes="actions",
            ),
            classes="banner",
        )
        banner.border_title = "■ Refused by the guard"
        return banner

    def _keys(self) -> str:
        keys = ["e edit", "r regenerate", "f fork", "c copy", "i why"]
        if self.turn.can_continue:
            keys.insert(2, "n continue")
        if self.turn.reasoning:
            keys.append("t thoughts")
        if self._answer.n_hidden_lines:
            keys.append("a all lines")
        return "  ·  ".join(keys)
