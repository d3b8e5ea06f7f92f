"""The turns of a chat: each with its question, answer, and how it went.

Only the latest are on the screen; earlier ones come when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Static

from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.templates.reasoning import thought_label
from safesteer_edge.tui.guard_words import refusal_advice, turn_notes
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.answer import MAX_LINES, EarlierLine, LongAnswer, quiet_size
from safesteer_edge.tui.widgets.attachments import Picture, media_lines

# Whatever is laid out costs at every frame of an answer that streams: a line of Markdown is about a
# widget. So there are few turns, at first and when more are asked for, and then; and few lines, but
# for the last two turns.
_N_AT_ONCE = 6
_N_SHOWN = 12
_MAX_LINES = 60
# While reasoning is written, no more of it is laid out anew at every frame.
_LIVE_CHARACTERS = 1200
_LAST_WORDS_CHARACTERS = 200
_REFUSAL_ACTIONS = (  # short: beside the inspector there is little room
    ("Reword", "edit"),
    ("Why?", "inspect"),
    ("Try again", "regenerate"),
    ("New chat", "new"),
)


@dataclass
class TurnAction(Message):
    """The person wants something done with a turn. action: a slash command's name."""

    action: str
    turn: ShownTurn


class ReasoningBlock(Vertical, can_focus=True):
    """What a thinking model wrote before its answer, in a line that Enter, a click or `t` opens."""

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
        self.action_unfold()

    def action_unfold(self) -> None:
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


class TurnView(Vertical, can_focus=True):
    """A turn. Tab reaches it; its keys show under it while it has the focus."""

    virtual_size = quiet_size()

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
        max-width: 104;  /* of a wider terminal: nobody reads longer lines */
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
        & .note.-steered, & .note.-warning { color: $text-warning; }
        & .banner {
            border: round $warning; padding: 0 1; margin: 0 1 0 1; height: auto;
            color: $foreground;
            &.-error { border: round $error; }
            & .actions { height: 1; margin: 1 0 0 0; }
            & Button { margin: 0 2 0 0; min-width: 6; padding: 0; }
        }
        & .turn-keys { display: none; color: $foreground 60%; padding: 0 2; height: auto; }
        &:focus { border-left: outer $primary 60%; & .turn-keys { display: block; } }
    }
    """

    def __init__(self, turn: ShownTurn, *, show_images: bool) -> None:
        super().__init__()
        self.turn = turn
        self._show_images = show_images
        self._reasoning = ReasoningBlock()
        self.answer = LongAnswer(turn.shown)

    def compose(self) -> ComposeResult:
        turn = self.turn
        question = strip_control_characters(turn.question)
        if question:
            yield Static(Content(question), classes="question")
        if turn.files or turn.lost:
            yield Static(media_lines(turn), classes="media-line")
            if self._show_images:
                yield from map(Picture, turn.images)
        yield self._reasoning
        yield self.answer
        yield Static("", classes="waiting", markup=False)
        yield Vertical(classes="outcome")
        yield Static("", classes="turn-keys")

    def on_mount(self) -> None:
        self.query_one(".outcome").styles.height = "auto"
        self.show_outcome()

    def show_reasoning(self) -> None:
        turn = self.turn
        if turn.reasoning:
            self._reasoning.show(turn.reasoning, is_over=bool(turn.text) or turn.is_over)

    def action_thoughts(self) -> None:
        if self.turn.reasoning:
            self._reasoning.action_unfold()

    def action_all_lines(self) -> None:
        self.answer.read_all()

    def show_media(self) -> None:
        for line in self.query(".media-line").results(Static):
            line.update(media_lines(self.turn))

    def show_waiting(self, text: str) -> None:
        """Say what is being waited for; empty: nothing."""
        waiting = self.query_one(".waiting", Static)
        if waiting.content != text or waiting.display != bool(text):
            waiting.update(text)
            waiting.display = bool(text)

    def show_outcome(self) -> None:
        turn = self.turn
        self.show_reasoning()
        if turn.is_over:
            self.show_waiting("")
            self.answer.ended()
        outcome = self.query_one(".outcome")
        outcome.remove_children()
        notes = turn_notes(turn) if turn.is_over else []
        if notes:
            steered = turn.is_steered
            sign = "◆ " if steered else ""
            hint = "  ·  /inspect shows where" if steered and turn.steps else ""
            note = Static(Content(sign + "  ·  ".join(notes) + hint), classes="note")
            note.set_class(steered, "-steered")
            outcome.mount(note)
        if turn.language_notice:
            outcome.mount(Static(Content(turn.language_notice), classes="note -warning"))
        if turn.refusal is not None:
            outcome.mount(self._refusal_banner())
        if turn.error is not None:
            banner = Static(Content(strip_control_characters(turn.error)), classes="banner -error")
            banner.border_title = "The answer was interrupted" if turn.text else "Not answered"
            outcome.mount(banner)
        self.query_one(".turn-keys", Static).update(Content(self._keys()))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_turn(str(event.button.name))

    def action_turn(self, action: str) -> None:
        self.post_message(TurnAction(action, self.turn))

    def _refusal_banner(self) -> Vertical:
        refusal = self.turn.refusal
        assert refusal is not None
        detail = strip_control_characters(refusal.detail)
        text = f"{detail[:1].upper()}{detail[1:]}. {refusal_advice(self.turn)}"
        banner = Vertical(
            Static(Content(text)),
            Horizontal(
                *(Button(label, name=name, compact=True) for label, name in _REFUSAL_ACTIONS),
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
        if self.answer.n_hidden_lines:
            keys.append("a all lines")
        return "  ·  ".join(keys)


class _Turns(Vertical):
    """The turns that are laid out."""

    virtual_size = quiet_size()


class EarlierTurns(EarlierLine):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("pageup,up", "show", "Show", show=False)]


class Transcript(VerticalScroll, can_focus=False):
    """Follows the newest text until the person scrolls away, and again at the bottom."""

    virtual_size = quiet_size()

    DEFAULT_CSS = """
    Transcript {
        height: 1fr; scrollbar-size-vertical: 1; scrollbar-color: $panel;
        background: $background;
        /* An anchored container scrolls above its start unless its content fills it. */
        & #turns { height: auto; min-height: 100%; padding: 1 1 0 1; }
        & EarlierTurns { content-align: center middle; margin: 0 0 1 0; }
    }
    """

    def __init__(self, *, show_images: bool, empty: Widget) -> None:
        super().__init__(id="transcript")
        self._turns: list[ShownTurn] = []
        self._n_hidden = 0
        self._show_images = show_images
        self._empty = empty
        self._earlier = EarlierTurns(lambda: self.run_worker(self.show_earlier(), exclusive=True))
        self._list = _Turns(self._earlier, id="turns")

    def compose(self) -> ComposeResult:
        yield self._empty
        yield self._list

    async def show_chat(self, turns: Sequence[ShownTurn]) -> None:
        self._turns = list(turns)
        self._n_hidden = len(self._turns) - _n_fitting(self._turns, _N_AT_ONCE)
        shown = [self._view(turn) for turn in self._turns[self._n_hidden :]]
        with self.app.batch_update():
            await self._list.remove_children(TurnView)
            self._show_empty(not self._turns)
            self._update_earlier()
            await self._list.mount_all(shown)
        self.anchor()

    async def add(self, turn: ShownTurn) -> TurnView:
        """Add a turn at the end; very old ones leave the screen."""
        self._show_empty(False)
        self._turns.append(turn)
        view = self._view(turn)
        await self._list.mount(view)
        await self._drop_old()
        self.anchor()
        return view

    async def show_earlier(self) -> None:
        """Show some more of the turns before; what was at the top stays where it was."""
        if not self._n_hidden:
            return
        low = self._n_hidden - _n_fitting(self._turns[: self._n_hidden], _N_AT_ONCE)
        more = [self._view(turn) for turn in self._turns[low : self._n_hidden]]
        height_before = self.virtual_size.height
        first = self.query(TurnView).first()
        with self.app.batch_update():
            await self._list.mount_all(more, before=first)
            self._n_hidden = low
            self._update_earlier()
        self.call_after_refresh(self._keep_place, height_before)

    async def page(self, direction: int) -> None:
        """Scroll a page up (-1) or down (1); from the top on, earlier turns come."""
        if direction < 0 and self.scroll_y <= 0 and self._n_hidden:
            await self.show_earlier()
            return
        page = max(1, self.scrollable_content_region.height - 1)
        self.scroll_relative(y=direction * page, animate=False)

    def view_of(self, turn: ShownTurn) -> TurnView | None:
        """The view of a turn, None while it is not on the screen."""
        return next((view for view in self.query(TurnView) if view.turn is turn), None)

    def _show_empty(self, is_empty: bool) -> None:
        self._empty.display = is_empty
        self._list.display = not is_empty

    def _keep_place(self, height_before: int) -> None:
        grown = self.virtual_size.height - height_before
        self.scroll_to(y=self.scroll_y + grown, animate=False)

    async def _drop_old(self) -> None:
        views = list(self.query(TurnView))
        n_over = len(views) - _n_fitting([view.turn for view in views], _N_SHOWN)
        if n_over > 0:
            await self._list.remove_children(views[:n_over])
            self._n_hidden += n_over
            self._update_earlier()

    def _view(self, turn: ShownTurn) -> TurnView:
        return TurnView(turn, show_images=self._show_images)

    def _update_earlier(self) -> None:
        self._earlier.display = self._n_hidden > 0
        text = f"↑ {self._n_hidden} earlier questions · click, or press Enter here"
        self._earlier.update(Content(text))


def _n_fitting(turns: Sequence[ShownTurn], n_most: int) -> int:
    """How many of these, from the end, are laid out at once."""
    n_lines = 0
    for n_turns, turn in enumerate(reversed(turns)):
        n_lines += min(turn.text.count("\n"), MAX_LINES) + turn.question.count("\n") + 2
        if n_turns == n_most or (n_turns >= 2 and n_lines > _MAX_LINES):
            return n_turns
    return len(turns)
