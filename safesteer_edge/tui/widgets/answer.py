"""An answer of any length: of a very long one its end is laid out, and the rest can be read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content, Span
from textual.geometry import Size
from textual.reactive import Reactive
from textual.visual import VisualType
from textual.widgets import Label, Markdown, Static
from textual.widgets import markdown as blocks

from safesteer_edge.tui.screens.boxes import ReaderScreen
from safesteer_edge.tui.shown_turn import removed_marks, split_marks

if TYPE_CHECKING:
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token


def quiet_size() -> Reactive[Size]:
    """For a widget's class, as its `virtual_size`: one whose changes lay nothing out anew.

    Textual's own has the whole screen arranged a second time whenever a text has grown. That
    matters where a widget scrolls alone, and there the scroll bars ask for it themselves.
    """
    return Reactive(Size(0, 0), layout=False, repaint=False)


class EarlierLine(Static, can_focus=True):
    """A line that stands for what is not shown above it; a click, or Enter there, shows it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space,pageup,up", "show", "Show", show=False)
    ]

    DEFAULT_CSS = """
    EarlierLine { color: $primary; height: 1;
                  &:focus { text-style: bold reverse; } &:hover { text-style: underline; } }
    """

    def __init__(self, show: Callable[[], object]) -> None:
        super().__init__()
        self._show = show

    def on_click(self) -> None:
        self._show()

    def action_show(self) -> None:
        self._show()


# -- markdown of an answer: streamed, its HTML shown and not obeyed, steered passages marked -------

# While it grows, it does so by so many lines at once: a line that is added moves all that there is,
# and all of it is drawn anew. Less where the terminal is low.
_GROWN_LINES = 8
_GROWN_SHARE = 5
_STEERED_STYLE = "bold underline $text-warning"


def make_parser() -> MarkdownIt:
    """GitHub's Markdown; HTML is text, and every line break that the model wrote is one."""
    parser = MarkdownIt("gfm-like", {"html": False})
    parser.core.ruler.push("line_breaks", _keep_line_breaks)
    return parser


def with_marks_styled(content: Content) -> Content:
    """The content without mark characters, and with a style where they stood."""
    marked = content.plain
    plain, marks = split_marks(marked)
    if len(plain) == len(marked):
        return content

    def moved(offset: int) -> int:
        return len(removed_marks(marked[:offset]))

    spans = [Span(moved(each.start), moved(each.end), each.style) for each in content.spans]
    return Content(plain, [*spans, *(Span(low, high, _STEERED_STYLE) for low, high in marks)])


class AnswerMarkdown(Markdown):
    """Write to it while an answer streams, then await `settled`."""

    virtual_size = quiet_size()

    DEFAULT_CSS = """
    AnswerMarkdown {
        padding: 0;
        MarkdownBlock { margin: 0 0 1 0; }
        MarkdownH1, MarkdownH2, MarkdownH3, MarkdownH4, MarkdownH5, MarkdownH6 {
            content-align: left middle;
            color: $foreground;
            text-style: bold;
            background: transparent;
            margin: 0 0 1 0;
            padding: 0;
        }
        MarkdownH1 { text-style: bold underline; }
        MarkdownFence { background: $panel; color: $foreground; margin: 0 0 1 0; }
        MarkdownFence > Label { padding: 0 1; }
        MarkdownBulletList, MarkdownOrderedList { padding: 0; margin: 0 0 1 0; }
        MarkdownList MarkdownBlock { margin: 0; }
        MarkdownBullet { color: $primary; }
        MarkdownBlockQuote { background: $surface; border-left: outer $secondary; padding: 0 1; }
        MarkdownTableContent { keyline: thin $panel; }
    }
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text, parser_factory=make_parser, open_links=False)
        self._waiting: list[str] = []
        self._anew: tuple[str, Callable[[], None]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._is_growing = False

    def write(self, text: str) -> None:
        """Add text soon; what comes while a piece is being laid out joins the next one."""
        if not text:
            return
        self._waiting.append(text)
        self._is_growing = True
        self._begin_writing()

    def ended(self) -> None:
        if self._is_growing:
            self._is_growing = False
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Lines; with room for some more while it grows."""
        height = super().get_content_height(container, viewport, width)
        if not self._is_growing:
            return height
        n_grown = max(1, min(_GROWN_LINES, viewport.height // _GROWN_SHARE))
        return -(-height // n_grown) * n_grown

    def write_anew(self, text: str, *, then: Callable[[], None]) -> None:
        """Let this take the place of all there is, soon, and `then` do this."""
        self._anew = (text, then)
        self._waiting.clear()
        self._begin_writing()

    async def settled(self) -> None:
        """Wait until all that was written is in the document."""
        if self._writer is not None:
            await self._writer

    def _begin_writing(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        while (self._waiting or self._anew) and self.is_attached:
            if self._anew is not None:
                (anew, then), self._anew = self._anew, None
                await self.update(anew)
                then()
            else:
                text = "".join(self._waiting)
                self._waiting.clear()
                await self.append(text)


class _WithMarks(blocks.MarkdownBlock):
    """A block whose inline text may hold mark characters."""

    virtual_size = quiet_size()

    def _token_to_content(self, token: Token) -> Content:
        # Textual gives no public place between an inline token and its content.
        return with_marks_styled(super()._token_to_content(token))

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """As of a Static; one that is not there yet is arranged when it comes."""
        super().update(content, layout=layout and self.is_mounted)


class _Paragraph(_WithMarks):
    """Text as wide as the answer."""

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """As of a Static; nothing is arranged anew for words that fit into the last line."""
        super().update(content, layout=False)
        width, height = self.content_size
        if layout and self.is_mounted and self.get_content_height(Size(), Size(), width) != height:
            self.refresh(layout=True)


class _Code(Label):
    """The text of a block of code."""

    virtual_size = quiet_size()


class _Fence(blocks.MarkdownFence):
    """Code: highlighted without the mark characters, which come back as style."""

    virtual_size = quiet_size()

    def __init__(self, markdown: Markdown, token: Token, code: str) -> None:
        token.info = removed_marks(token.info)
        super().__init__(markdown, token, code)

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        plain, marks = split_marks(code)
        content = super().highlight(plain, language.split(" ")[0], ansi=ansi, dark=dark)
        spans = [Span(low, high, _STEERED_STYLE) for low, high in marks]
        return Content(content.plain, [*content.spans, *spans])

    def compose(self) -> ComposeResult:
        """The code, under the name that Textual looks for it by."""
        yield _Code(self._highlighted_code, id="code-content", expand=True)


def _marked(name: str, ours: type[_WithMarks] = _WithMarks) -> Any:
    """Textual's kind of block, for marked text. The name stays: styles are chosen by it."""
    block = Markdown.BLOCKS[name]
    return type(block.__name__, (ours, block), {})


def _keep_line_breaks(state: StateCore) -> None:
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


AnswerMarkdown.BLOCKS = {
    **Markdown.BLOCKS,
    **{name: _marked(name) for name in ("h1", "h2", "h3", "h4", "h5", "h6", "th_open", "td_open")},
    "paragraph_open": _marked("paragraph_open", _Paragraph),
    "fence": _Fence,
    "code_block": _Fence,
}


# -- the end of a long answer, cut where Markdown still means the same -----------------------------

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# To begin at a blank line, so much less than what was asked for may be shown.
_SEARCHED_SHARE = 4


def tail_of(text: str, n_lines: int) -> tuple[int, str]:
    """How many lines are left out, and the last `n_lines` of a text, or somewhat fewer.

    It begins after a blank line where there is one. Where it begins inside a code block, the block
    is opened again.
    """
    lines = text.split("\n")
    start = len(lines) - n_lines
    if start <= 0:
        return 0, text
    fence = _open_fence(lines[:start])
    if fence is not None:
        return start, "\n".join([fence, *lines[start:]])
    for index in range(start, start + n_lines // _SEARCHED_SHARE):
        if _FENCE.match(lines[index]):
            start = index
            break
        if not lines[index].strip():
            start = index + 1
            break
    return start, "\n".join(lines[start:])


def _open_fence(lines: list[str]) -> str | None:
    """The line that opened the code block which these lines end in; None: they end in none."""
    opener: str | None = None
    mark = ""
    for line in lines:
        found = _FENCE.match(line)
        if found is None:
            continue
        if opener is None:
            opener, mark = line, found.group(1)
        elif found.group(1).startswith(mark) and not line[found.end() :].strip():
            opener = None
    return opener


# Every line costs at each layout: of more than these, the last ones alone are laid out, anew.
MAX_LINES = 80
KEPT_LINES = 50


class LongAnswer(Vertical):
    """Write to it while an answer streams, then await `settled`.

    n_hidden_lines: before those that are shown.
    """

    virtual_size = quiet_size()

    DEFAULT_CSS = "LongAnswer { height: auto; & EarlierLine { padding: 0 2; display: none; } }"

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._pieces = [text]
        is_long = text.count("\n") > MAX_LINES
        self.n_hidden_lines, tail = tail_of(text, KEPT_LINES) if is_long else (0, text)
        self._n_shown = tail.count("\n")
        self._earlier = EarlierLine(self.read_all)
        self._markdown = AnswerMarkdown(tail)

    def compose(self) -> ComposeResult:
        yield self._earlier
        yield self._markdown

    def on_mount(self) -> None:
        """Say what is left out of a text from a file."""
        self._update_earlier()

    def read_all(self) -> None:
        """Let the person read all of it, as it was written: that is quick whatever its length."""
        self.app.push_screen(ReaderScreen(removed_marks(self.text)))

    def write(self, text: str) -> None:
        self._pieces.append(text)
        self._n_shown += text.count("\n")
        if self._n_shown <= MAX_LINES:
            self._markdown.write(text)
            return
        self.n_hidden_lines, tail = tail_of(self.text, KEPT_LINES)
        self._n_shown = tail.count("\n")
        self._markdown.write_anew(tail, then=self._followers())
        self._update_earlier()

    def ended(self) -> None:
        self._markdown.ended()

    async def settled(self) -> None:
        await self._markdown.settled()

    @property
    def text(self) -> str:
        whole = "".join(self._pieces)
        self._pieces = [whole]
        return whole

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
        self._earlier.display = self.n_hidden_lines > 0
        text = f"↑ {self.n_hidden_lines:,} earlier lines of this answer"
        self._earlier.update(
            Content(f"{text} · click, or press Enter here, to read all"), layout=False
        )
