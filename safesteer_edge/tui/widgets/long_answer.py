"""An answer of any length: of a very long one its end is laid out, and the rest can be read."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from safesteer_edge.tui.answer_tail import tail_of
from safesteer_edge.tui.marks import removed_marks
from safesteer_edge.tui.screens.reader_screen import ReaderScreen
from safesteer_edge.tui.widgets.answer_markdown import AnswerMarkdown
from safesteer_edge.tui.widgets.arranged_once import arranged_once

# Every line costs at each layout. Whole blocks are let go of before; but a block of code may be
# longer, and then what is shown is made anew, as now and then for the sake of what it is made of.
MAX_LINES = 80
KEPT_LINES = 50
_SHORTENED_LINES = 60
_MAX_SOURCE_LINES = 1000


class EarlierLinesWanted(Message):
    """Somebody wants to read the whole answer."""


class _EarlierLines(Static, can_focus=True):
    """A line that stands for lines that are not shown."""

    DEFAULT_CSS = """
    _EarlierLines { color: $primary; height: 1; padding: 0 2; display: none;
                    &:focus { text-style: bold reverse; } &:hover { text-style: underline; } }
    """

    def on_click(self) -> None:
        """Show all."""
        self.post_message(EarlierLinesWanted())

    def on_key(self, event: events.Key) -> None:
        """Enter shows all."""
        if event.key in ("enter", "space"):
            event.stop()
            self.post_message(EarlierLinesWanted())


class LongAnswer(Vertical):
    """Write to it while an answer streams, then await `settled`."""

    virtual_size = arranged_once()

    DEFAULT_CSS = "LongAnswer { height: auto; }"

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._pieces = [text]
        n_hidden, tail = tail_of(text, KEPT_LINES) if _is_long(text) else (0, text)
        self._n_hidden = n_hidden
        self._n_shown = self._n_source = tail.count("\n")
        self._n_before_source = n_hidden
        self._earlier = _EarlierLines()
        self._markdown = AnswerMarkdown(tail)

    def compose(self) -> ComposeResult:
        """What is left out, in a line; and the rest."""
        yield self._earlier
        yield self._markdown

    def on_mount(self) -> None:
        """Say what is left out of a text from a file."""
        self._update_earlier()

    def on_earlier_lines_wanted(self, message: EarlierLinesWanted) -> None:
        """Its line was chosen."""
        message.stop()
        self.read_all()

    def read_all(self) -> None:
        """Let the person read all of it, as it was written: that is quick whatever its length."""
        self.app.push_screen(ReaderScreen(removed_marks(self.text)))

    @property
    def n_hidden_lines(self) -> int:
        """Lines before those that are shown."""
        return self._n_hidden

    def write(self, text: str) -> None:
        """Add text soon."""
        self._pieces.append(text)
        n_new = text.count("\n")
        self._n_shown += n_new
        self._n_source += n_new
        if self._n_shown > MAX_LINES or self._n_source > _MAX_SOURCE_LINES:
            self._write_end()
            return
        self._markdown.write(text)
        if self._n_shown > _SHORTENED_LINES:
            self._markdown.shorten(KEPT_LINES, then=self._shortened)

    def ended(self) -> None:
        """No more will be written for now."""
        self._markdown.ended()

    async def settled(self) -> None:
        """Wait until all that was written is in the document."""
        await self._markdown.settled()

    @property
    def text(self) -> str:
        """All that was written."""
        whole = "".join(self._pieces)
        self._pieces = [whole]
        return whole

    def _write_end(self) -> None:
        """Make what is shown anew, of the last lines."""
        n_hidden, tail = tail_of(self.text, KEPT_LINES)
        self._n_hidden = self._n_before_source = n_hidden
        self._n_shown = self._n_source = tail.count("\n")
        self._markdown.write_anew(tail, then=self._followers())
        self._update_earlier()

    def _shortened(self, n_left_out: int) -> None:
        """Blocks were let go of. n_left_out: lines of what the rest is made of."""
        self._n_hidden = self._n_before_source + n_left_out
        self._n_shown = self._n_source - n_left_out
        self._update_earlier()

    def _followers(self) -> Callable[[], None]:
        """What lets those that show the end do so again: a text that shrinks takes it from them."""
        at_end = [
            each
            for each in self.ancestors
            if isinstance(each, VerticalScroll) and each.max_scroll_y - each.scroll_y <= 1
        ]

        def follow() -> None:
            for each in at_end:
                each.scroll_end(animate=False, on_complete=each.anchor)

        return follow

    def _update_earlier(self) -> None:
        self._earlier.display = self._n_hidden > 0
        text = (
            f"↑ {self._n_hidden:,} earlier lines of this answer · click, or Enter here, to read all"
        )
        self._earlier.update(Content(text), layout=False)


def _is_long(text: str) -> bool:
    return text.count("\n") > MAX_LINES
