"""All chats: search them, go on with one, rename, export, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, NamedTuple

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from safesteer_edge.chats.chat_store import ChatStore, ChatSummary
from safesteer_edge.errors import SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.tui.chat_export import parse_target, write_export
from safesteer_edge.tui.commands import conversation
from safesteer_edge.tui.screens.boxes import ChoiceScreen, LineScreen

_DAY_S = 86400.0
_TITLE_WIDTH = 34


class _Found(NamedTuple):
    """A chat of the list. snippet: where the searched words stand in it."""

    chat: ChatSummary
    snippet: str = ""


class ChatsScreen(ModalScreen[str | None]):
    """Ends with the id of the chat to go on with, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f2", "dismiss(None)", "Close"),
        Binding("down", "to_list", show=False),
        Binding("ctrl+t", "rename", "Rename"),
        Binding("ctrl+e", "export", "Export", priority=True),
        Binding("ctrl+d,delete", "delete", "Delete", priority=True),
    ]

    DEFAULT_CSS = """
    ChatsScreen {
        align: center middle; background: $background 60%;
        & #chats {
            width: 100; max-width: 96%; height: 90%; max-height: 34;
            border: round $primary; background: $surface; padding: 0 1;
        }
        & Input { border: round $border; height: 3; background: $surface;
                  &:focus { border: round $primary; } }
        & OptionList {
            height: 1fr; background: $surface; border: none; padding: 0;
            text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
            &:focus { border: none; }
        }
        & #nothing {
            display: none; height: 1fr; content-align: center middle; color: $foreground 60%;
        }
        & Horizontal { height: 1; margin: 1 0 0 0; }
        & Button { margin: 0 2 0 0; min-width: 6; padding: 0 1; }
    }
    """

    def __init__(self, store: ChatStore, open_chat: conversation.Chat, words: str) -> None:
        """words: to search for at once."""
        super().__init__()
        self._store = store
        self._open_chat, self._current = open_chat, open_chat.state.chat_id
        self._words = words
        self._found: Sequence[_Found] = ()

    def compose(self) -> ComposeResult:
        with Vertical(id="chats") as box:
            box.border_title = "Chats"
            box.border_subtitle = "Enter opens · Esc closes"
            yield Input(self._words, placeholder="search titles and messages", id="search")
            yield OptionList(id="found")
            yield Static("", id="nothing")
            with Horizontal():
                for label in ("Open", "Rename ^T", "Export ^E", "Delete ^D"):
                    action = f"screen.{label.split()[0].lower()}"
                    yield Button(label, compact=True, action=action)

    def on_mount(self) -> None:
        self._look(self._words)

    @work(exclusive=True)
    async def _look(self, words: str) -> None:
        """Show what there is for these words, unless others are typed meanwhile."""
        problem = ""
        try:
            self._found = await asyncio.to_thread(_found, self._store, words)
        except SafeSteerError as error:
            self._found, problem = (), str(error)
        empty = "no chat matches" if words else "no chats yet"
        options, nothing = self.query_one(OptionList), self.query_one("#nothing", Static)
        nothing.update(Content(problem or empty))
        options.display, nothing.display = bool(self._found), not self._found
        options.clear_options()
        options.add_options([Option(self._line(each)) for each in self._found])
        options.highlighted = 0 if self._found else None

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self._look(event.value)

    def on_input_submitted(self) -> None:
        """Enter in the search: the first one."""
        self.action_open()

    def on_option_list_option_selected(self) -> None:
        self.action_open()

    def action_to_list(self) -> None:
        """From the search down to the list, whose first row Enter opens from either."""
        if isinstance(self.focused, Input):
            options = self.query_one(OptionList)
            options.focus()
            if options.option_count > 1:
                options.action_cursor_down()

    @work(group="do")
    async def action_rename(self) -> None:
        chosen = self._chosen()
        if chosen is None or chosen.problem is not None:
            return
        box = LineScreen("Rename", "New title:", chosen.title)
        title = await self.app.push_screen_wait(box)
        if title is not None and chosen.id == self._current:
            await self._attempt(conversation.rename(self._open_chat, title))
        elif title is not None:
            await self._attempt(asyncio.to_thread(self._store.rename, chosen.id, title))

    @work(group="do")
    async def action_export(self) -> None:
        """Ask for a format, then write the file into the folder that the program runs in."""
        chosen = self._chosen()
        if chosen is None or chosen.problem is not None:
            return
        choices = (("md", "Markdown"), ("html", "HTML"), ("json", "JSON"))
        text = f"Save ‘{chosen.title}’ to a file in the current folder as:"
        kind = await self.app.push_screen_wait(ChoiceScreen("Export", text, choices))
        if kind is not None:
            to = parse_target(kind)[0]
            doing = asyncio.to_thread(
                lambda: write_export(
                    self._store.read(chosen.id), self._store.media.path, to, path=None
                )
            )
            await self._attempt(doing, lambda path: f"wrote {path}")

    @work(group="do")
    async def action_delete(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            return
        if chosen.id == self._current:
            self.notify("this chat is open; start a new one first (/new)", markup=False)
            return
        text = f"Delete ‘{chosen.title}’, {chosen.n_messages} messages? This cannot be undone."
        choices = (("keep", "Keep it"), ("delete", "Delete"))
        choice = await self.app.push_screen_wait(ChoiceScreen("Delete", text, choices))
        if choice == "delete":
            doing = asyncio.to_thread(self._store.delete, chosen.id)
            await self._attempt(doing, lambda _: f"deleted ‘{chosen.title}’")

    async def _attempt(
        self, work: Awaitable[object], done: Callable[[object], str] | None = None
    ) -> None:
        """Do something with a chat, then show the list as it is now. done: what to say of it."""
        try:
            result = await work
            if done is not None:
                self.notify(done(result), markup=False)
        except SafeSteerError as error:
            self.notify(str(error), severity="error", markup=False)
        self._look(self._words)

    def action_open(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            return
        if chosen.problem is not None:
            self.notify(chosen.problem, severity="error", markup=False)
        else:
            self.dismiss(chosen.id if chosen.id != self._current else None)

    def _chosen(self) -> ChatSummary | None:
        index = self.query_one(OptionList).highlighted
        return self._found[index].chat if index is not None and self._found else None

    def _line(self, found: _Found) -> Content:
        chat = found.chat
        sign = "●" if chat.id == self._current else "✗" if chat.problem else " "
        title = strip_control_characters(chat.title)
        about = strip_control_characters(found.snippet or chat.model or "")
        title = title if len(title) <= _TITLE_WIDTH else f"{title[: _TITLE_WIDTH - 1]}…"
        line = f"{sign} {when(chat.updated_at, time.time()):<10} {title:<{_TITLE_WIDTH}} "
        return Content(line) + Content.styled(
            f"{(chat.n_messages + 1) // 2:>3} asked  {about}", "$foreground 60%"
        )


def when(at: float, now: float) -> str:
    """A time of the past as people say it."""
    day, today = time.localtime(at), time.localtime(now)
    if day[:3] == today[:3]:
        return time.strftime("%H:%M", day)
    if day[:3] == time.localtime(now - _DAY_S)[:3]:
        return "yesterday"
    return time.strftime("%d %b" if day[0] == today[0] else "%Y-%m-%d", day)


def _found(store: ChatStore, words: str) -> list[_Found]:
    """Chats whose title or messages have all words; the latest first."""
    summaries = store.list()
    if not words.strip():
        return [_Found(chat) for chat in summaries]
    snippets: dict[str, str] = {}
    for hit in store.search(words):
        snippets.setdefault(hit.chat.id, hit.snippet)
    wanted = words.casefold().split()
    return [
        _Found(chat, snippets.get(chat.id, ""))
        for chat in summaries
        if chat.id in snippets or all(word in chat.title.casefold() for word in wanted)
    ]
