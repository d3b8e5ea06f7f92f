"""The turns of a chat. Only the latest are on the screen; earlier ones come when asked for."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.widgets.answer import MAX_LINES, arranged_once
from safesteer_edge.tui.widgets.turn_view import TurnView

# Whatever is laid out costs at every frame of an answer that streams: a line of Markdown is about a
# widget. So there are few turns, at first and when more are asked for, and then; and few lines, but
# for the last two turns.
_N_AT_ONCE = 6
_N_SHOWN = 12
_MAX_LINES = 60


class _Earlier(Static, can_focus=True):
    """A line that stands for turns that are not shown."""

    DEFAULT_CSS = """
    _Earlier { color: $primary; content-align: center middle; height: 1; margin: 0 0 1 0;
               &:focus { text-style: bold reverse; } &:hover { text-style: underline; } }
    """

    def on_click(self) -> None:
        """Show more."""
        self._show_more()

    def on_key(self, event: events.Key) -> None:
        """Enter and Page Up show more."""
        if event.key in ("enter", "space", "pageup", "up"):
            event.stop()
            self._show_more()

    def _show_more(self) -> None:
        transcript = next(w for w in self.ancestors if isinstance(w, Transcript))
        self.run_worker(transcript.show_earlier(), exclusive=True)


class _Turns(Vertical):
    """The turns that are laid out."""

    virtual_size = arranged_once()


class Transcript(VerticalScroll, can_focus=False):
    """Follows the newest text until the person scrolls away, and again at the bottom."""

    virtual_size = arranged_once()

    DEFAULT_CSS = """
    Transcript {
        height: 1fr; scrollbar-size-vertical: 1; scrollbar-color: $panel;
        background: $background;
        /* An anchored container scrolls above its start unless its content fills it. */
        & #turns { height: auto; min-height: 100%; padding: 1 1 0 1; }
    }
    """

    def __init__(self, *, show_images: bool, empty: Widget) -> None:
        super().__init__(id="transcript")
        self._turns: list[ShownTurn] = []
        self._n_hidden = 0
        self._show_images = show_images
        self._empty = empty
        self._list = _Turns(id="turns")

    def compose(self) -> ComposeResult:
        """What stands there while there is no turn, and the turns."""
        yield self._empty
        yield self._list

    @property
    def turns(self) -> Sequence[ShownTurn]:
        """All turns, shown or not."""
        return self._turns

    async def show_chat(self, turns: Sequence[ShownTurn]) -> None:
        """Show a chat from its end."""
        self._turns = list(turns)
        self._n_hidden = len(self._turns) - _n_fitting(self._turns, _N_AT_ONCE)
        shown = [self._view(turn) for turn in self._turns[self._n_hidden :]]
        with self.app.batch_update():
            await self._list.remove_children()
            self._show_empty(not self._turns)
            await self._list.mount_all([self._earlier(), *shown] if self._n_hidden else shown)
        self.follow()

    async def add(self, turn: ShownTurn) -> TurnView:
        """Add a turn at the end; very old ones leave the screen."""
        self._show_empty(False)
        self._turns.append(turn)
        view = self._view(turn)
        await self._list.mount(view)
        await self._drop_old()
        self.follow()
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

    def follow(self) -> None:
        """Keep the end in view."""
        self.anchor()

    def _show_empty(self, is_empty: bool) -> None:
        self._empty.display = is_empty
        self._list.display = not is_empty

    def _keep_place(self, height_before: int) -> None:
        grown = self.virtual_size.height - height_before
        self.scroll_to(y=self.scroll_y + grown, animate=False)

    async def _drop_old(self) -> None:
        views = list(self.query(TurnView))
        n_over = len(views) - _n_fitting([view.turn for view in views], _N_SHOWN)
        if n_over <= 0:
            return
        for view in views[:n_over]:
            await view.remove()
        self._n_hidden += n_over
        if not self.query(_Earlier):
            await self._list.mount(self._earlier(), before=0)
        self._update_earlier()

    def _view(self, turn: ShownTurn) -> TurnView:
        return TurnView(turn, show_images=self._show_images)

    def _earlier(self) -> _Earlier:
        return _Earlier(self._earlier_text())

    def _earlier_text(self) -> Content:
        return Content(f"↑ {self._n_hidden} earlier questions · click, or Enter here")

    def _update_earlier(self) -> None:
        for line in self.query(_Earlier):
            if self._n_hidden:
                line.update(self._earlier_text())
            else:
                line.remove()


def _n_fitting(turns: Sequence[ShownTurn], n_most: int) -> int:
    """How many of these, from the end, are laid out at once."""
    n_lines = 0
    for n_turns, turn in enumerate(reversed(turns)):
        n_lines += min(turn.text.count("\n"), MAX_LINES) + turn.question.count("\n") + 2
        if n_turns == n_most or (n_turns >= 2 and n_lines > _MAX_LINES):
            return n_turns
    return len(turns)
