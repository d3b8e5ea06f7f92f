"""The main screen: transcript, input, and what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Static

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import SafeSteerError
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_schema import UserSettings
from safesteer_edge.tui.attached_files import AttachedFiles
from safesteer_edge.tui.chat_state import ChatState
from safesteer_edge.tui.commands import asking, looking
from safesteer_edge.tui.commands.handlers import HANDLERS
from safesteer_edge.tui.commands.submitting import submit
from safesteer_edge.tui.engine_listener import EngineListener
from safesteer_edge.tui.engine_thread import (
    ClipboardWanted,
    CompletionsWanted,
    EngineThread,
    LastAttachmentErased,
    PathsDropped,
    Submitted,
    TurnAction,
)
from safesteer_edge.tui.guard_words import (
    MODE_MEANINGS,
    UNCALIBRATED,
    UNCALIBRATED_MEANING,
    is_uncalibrated,
)
from safesteer_edge.tui.looks import key_labels
from safesteer_edge.tui.screens.models_screen import ModelLister
from safesteer_edge.tui.shown_turn import ShownTurn
from safesteer_edge.tui.slash_commands import COMMANDS_BY_NAME
from safesteer_edge.tui.turn_runner import TurnRunner
from safesteer_edge.tui.widgets.attachments import AttachmentBar, AttachmentRemoved
from safesteer_edge.tui.widgets.bars import RiskLine, StatusBar, TopBar, Welcome
from safesteer_edge.tui.widgets.composer import CompletionChosen, Completions, Composer
from safesteer_edge.tui.widgets.inspector import Inspector
from safesteer_edge.tui.widgets.transcript import Transcript

_NUMBERED = ("edit", "regenerate", "fork")  # commands that take a turn's number
_INPUT_HINTS = "Enter sends · Ctrl+J new line · {attach} file · / commands"
_EDIT_HINTS = "Enter sends it again, in place of what followed · {interrupt} leaves it as it was"


class ChatScreen(Screen[None]):
    """One chat."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  # Textual's own type
    AUTO_FOCUS = "Composer"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "interrupt", "Stop", show=False, id="chat.interrupt"),
        *(
            Binding(key, f"command('{name}')", label, priority=True, id=f"chat.{name}")
            for key, name, label in (
                ("f1", "help", "Help"),
                ("f2", "chats", "Chats"),
                ("f3", "models", "Models"),
                ("f4", "settings", "Settings"),
                ("f5", "inspect", "Inspect"),
                ("f6", "compare", "Compare"),
                ("ctrl+n", "new", "New chat"),
                ("ctrl+o", "attach", "Attach"),
                ("ctrl+r", "regenerate", "Regenerate"),
            )
        ),
    ]

    DEFAULT_CSS = """
    ChatScreen {
        background: $background;
        & #body { height: 1fr; }
        & #problem {
            display: none; height: auto; border: round $error; margin: 0 1; padding: 0 1;
        }
        & #input-area { height: auto; padding: 0 1; }
        &.-monitor Composer { border: heavy $warning; border-title-color: $warning; }
        &.-off Composer { border: double $error; border-title-color: $error; }
        &.-inspecting.-narrow Transcript { display: none; }
        &.-narrow #menu-key { display: none; }
        &.-narrow Inspector { width: 1fr; border-left: none; }
    }
    """

    def __init__(
        self,
        engine: EngineThread,
        state: ChatState,
        settings: SessionSettings,
        *,
        show_images: bool,
        model_lister: ModelLister,
        store: ChatStore | None,
        user_settings: UserSettings,
    ) -> None:
        """settings: of the model that is loaded, or will be. store: None saves nothing."""
        super().__init__()
        self.session_settings = settings
        self.model_lister = model_lister
        self.store = store
        self.user_settings = user_settings
        self.listener = EngineListener(self)
        self.state = state
        self.engine = engine
        self.runner = TurnRunner(self, engine, state)
        self.attached = AttachedFiles(self)
        self._show_images = show_images

    def compose(self) -> ComposeResult:
        """Top to bottom."""
        yield TopBar()
        with Horizontal(id="body"):
            yield Transcript(
                show_images=self._show_images, empty=Welcome(key_labels(self.user_settings.keys))
            )
            yield Inspector()
        yield Static(id="problem")
        yield RiskLine()
        yield Completions()
        yield AttachmentBar()
        with Vertical(id="input-area"):
            yield Composer()
        yield StatusBar()

    async def on_mount(self) -> None:
        """Show the chat that there is."""
        await self.show_chat()
        self.listener.load(self.session_settings, self.session_settings.model or "the model")

    # -- what the person does ---------------------------------------------------------------------

    async def on_submitted(self, message: Submitted) -> None:
        """Send a message, or obey a command."""
        try:
            await submit(self, message.text)
        except SafeSteerError as error:
            self.complain(str(error))

    async def on_turn_action(self, message: TurnAction) -> None:
        """A key on a turn."""
        try:
            await self._act_on(message.turn, message.action)
        except SafeSteerError as error:
            self.complain(str(error))

    async def _act_on(self, turn: ShownTurn, action: str) -> None:
        number = str(self.state.turns.index(turn) + 1)
        if action == "inspect":
            looking.show_in_inspector(self, turn)
        elif action == "copy":
            self.app.copy_to_clipboard(turn.text)
            self.say("copied the answer")
        else:
            await HANDLERS[action](self, number if action in _NUMBERED else "")

    async def action_command(self, name: str) -> None:
        """A key that stands for a slash command."""
        try:
            await HANDLERS[name](self, "")
        except SafeSteerError as error:
            self.complain(str(error))

    async def choose_command(self, name: str) -> None:
        """A command chosen in the menu: done, or put into the input if it needs an argument."""
        argument = COMMANDS_BY_NAME[name].argument
        if argument and not argument.startswith("["):
            self.query_one(Composer).replace_text(f"/{name} ")
            self.action_focus_composer()
        else:
            await self.action_command(name)

    async def action_interrupt(self) -> None:
        """Escape: stop the answer, else leave what is open."""
        if self.runner.turn is not None:
            self.engine.cancel()
            self.query_one(StatusBar).show_state("■ stopping")
        elif self.state.edited is not None:
            await asking.leave_edit(self)
        elif self.query_one(Inspector).is_shown:
            looking.close_inspector(self)
        self.action_focus_composer()

    def action_focus_composer(self) -> None:
        """Back to the input."""
        self.query_one(Composer).focus()

    async def action_page_transcript(self, direction: int) -> None:
        """Page Up and Page Down in the input: what can be seen of chat and panel moves."""
        inspector = self.query_one(Inspector)
        if inspector.is_shown and self.has_class("-narrow"):
            inspector.scroll_relative(y=direction * inspector.size.height, animate=False)
        else:
            await self.query_one(Transcript).page(direction)

    async def on_paths_dropped(self, message: PathsDropped) -> None:
        """Files were pasted or dropped."""
        await self.attached.add_or_complain(message.paths)

    async def on_last_attachment_erased(self, _message: LastAttachmentErased) -> None:
        """Backspace in an empty input."""
        await self.attached.take_off(-1)

    async def on_attachment_removed(self, message: AttachmentRemoved) -> None:
        """A click on an attachment."""
        await self.attached.take_off(message.index)

    def on_clipboard_wanted(self, message: ClipboardWanted) -> None:
        """Ctrl+V, or a terminal that pastes nothing."""
        self.run_worker(self.attached.paste(message.text))

    def on_completions_wanted(self, message: CompletionsWanted) -> None:
        """Show the commands that the input could become."""
        self.query_one(Completions).show(message.text)

    def on_completion_chosen(self, message: CompletionChosen) -> None:
        """A click on a command puts it into the input."""
        command = message.command
        self.query_one(Composer).replace_text(f"/{command.name}{' ' if command.argument else ''}")
        self.action_focus_composer()

    # -- what others ask of the screen ------------------------------------------------------------

    async def show_chat(self) -> None:
        """Show the chat that the state holds, from its end."""
        await self.query_one(Transcript).show_chat(self.state.turns)
        await self.attached.show()
        self.query_one(StatusBar).show_figures("")
        self.show_bars()
        self.query_one(Composer).focus()

    def show_bars(self) -> None:
        """Show title, model, guard; and what the input does."""
        state, guard = self.state, self.state.settings.guard
        labels = key_labels(self.user_settings.keys)
        info = state.info
        model = f"{info.model_name} {info.quantization}" if info else "no model yet"
        uncalibrated = is_uncalibrated(info, guard)
        self.query_one(TopBar).show(
            title=state.shown_title, model=model, guard=guard, is_uncalibrated=uncalibrated
        )
        self.set_class(guard == "monitor", "-monitor")
        self.set_class(guard == "off", "-off")
        composer = self.query_one(Composer)
        is_editing = state.edited is not None
        title = {"monitor": "MONITOR ONLY: ", "off": "GUARD OFF: "}.get(guard, "")
        title += MODE_MEANINGS[guard] if title else ""
        if uncalibrated:
            title = " · ".join(filter(None, (title, f"{UNCALIBRATED}: {UNCALIBRATED_MEANING}")))
        composer.border_title = "Edit the question" if is_editing else title or None
        hints = _EDIT_HINTS if is_editing else _INPUT_HINTS
        composer.show_hints(hints.format_map(labels))
        self.query_one(Welcome).show_keys(labels)
        self.query_one(StatusBar).show_help_key(labels["help"])

    def key(self, name: str) -> str:
        """The key that the settings have for a command, for people."""
        return key_labels(self.user_settings.keys)[name]

    def do_with_chat(self, work: Callable[[RecordedChat], None]) -> None:
        """Let the engine's thread do something; if it fails, say so."""

        async def wait() -> None:
            try:
                await asyncio.wrap_future(self.engine.call(work))
            except SafeSteerError as error:
                self.complain(str(error))

        self.run_worker(wait())

    async def rename_current(self, title: str) -> None:
        """Give the chat that is open a title. Raises SafeSteerError."""
        await HANDLERS["rename"](self, title)

    def complain(self, text: str) -> None:
        """Say what does not work, and what to do."""
        self.notify(text, severity="error", markup=False, timeout=8)

    def say(self, text: str) -> None:
        """Say that something was done."""
        self.notify(text, markup=False, timeout=4)
