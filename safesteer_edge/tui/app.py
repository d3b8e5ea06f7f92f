"""The chat application: screens over one engine thread."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.errors import SafeSteerError
from safesteer_edge.session.protocol import ChatSession, TurnSettings
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_file import save_setting
from safesteer_edge.session.settings_schema import UserSettings
from safesteer_edge.tui.chat_state import ChatState
from safesteer_edge.tui.commands.chats import resume
from safesteer_edge.tui.commands.setting import applied, theme_named
from safesteer_edge.tui.engine_thread import (
    EngineThread,
    EngineTold,
    SessionOpener,
    SettingChanged,
    Submitted,
    Told,
)
from safesteer_edge.tui.looks import THEMES, key_labels
from safesteer_edge.tui.model_rows import known_models
from safesteer_edge.tui.screens.boxes import FirstRunScreen
from safesteer_edge.tui.screens.chat_screen import ChatScreen
from safesteer_edge.tui.screens.models_screen import ModelLister
from safesteer_edge.tui.slash_commands import COMMANDS
from safesteer_edge.tui.terminal import find_native_pictures, leave_with_terminal, spare_pauses
from safesteer_edge.tui.whole_pastes import take_pastes_whole


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the application starts with.

    opener: makes a session of settings; called on the engine's thread. store: None saves nothing.
    native_picture: makes a widget of a decoded image by the terminal's own graphics; None: half
        blocks.
    chat_id: of a saved chat to go on with. question: asked at once, unless empty.
    """

    settings: SessionSettings
    opener: SessionOpener
    store: ChatStore | None = None
    show_images: bool = True
    theme: str = "auto"
    user_settings: UserSettings = field(default_factory=UserSettings)
    save_setting: Callable[[str, UserSettings], object] = lambda key, settings: None
    native_picture: Callable[..., object] | None = None
    model_lister: ModelLister = known_models
    is_first_run: bool = False
    chat_id: str | None = None
    question: str = ""


class ChatApp(App[None]):
    """Run it; the model loads while the person types."""

    TITLE = "SafeSteer Edge"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_DISPLAY = "Ctrl+P"
    CSS = """
    ToastRack { dock: top; align: right top; margin: 2 0 0 0; }
    Toast { background: $panel; padding: 0 1; margin: 0 1 1 0; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True),
        Binding("ctrl+c", "interrupt", "Stop", show=False, system=True),
    ]

    def __init__(self, options: ChatOptions) -> None:
        super().__init__()
        self.options = options
        self.native_picture = options.native_picture
        self.engine = EngineThread(options.opener, options.store, self._tell)
        self.state = ChatState(TurnSettings.of(options.settings))
        self.chat = ChatScreen(
            self.engine,
            self.state,
            options.settings,
            show_images=options.show_images,
            model_lister=options.model_lister,
            store=options.store,
            user_settings=options.user_settings,
        )
        for theme in THEMES:
            self.register_theme(theme)

    def on_mount(self) -> None:
        """Show the chat, then begin to load."""
        self.theme = theme_named(self.options.theme)
        self._use_keys(self.options.user_settings)
        self.engine.start()
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is left as it was
                asyncio.get_running_loop().add_signal_handler(
                    number, partial(self.exit, return_code=128 + number)
                )
        self.push_screen(self.chat)
        if self.options.is_first_run:
            self.push_screen(FirstRunScreen())
        if self.options.chat_id is not None or self.options.question:
            self.chat.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """Do what the command line asked for, as if it were typed."""
        if self.options.chat_id is not None:
            worker = self.chat.run_worker(resume(self.chat, self.options.chat_id), exclusive=True)
            await worker.wait()
        if self.options.question:
            self.chat.post_message(Submitted(self.options.question))

    async def on_engine_told(self, message: EngineTold) -> None:
        """The engine's thread says something: the chat shows it, whatever lies over it."""
        if not self.is_running:
            return
        try:
            await self.chat.listener.told(message.told)
        except NoMatches:
            if self.is_running:  # else the screen was taken down meanwhile
                raise

    def on_setting_changed(self, message: SettingChanged) -> None:
        """Save it, and let what runs have it."""
        key, settings = message.key, message.settings
        self.chat.user_settings = settings
        try:
            self.options.save_setting(key, settings)
        except SafeSteerError as error:
            self.notify(str(error), severity="error", markup=False)
        self.state.settings = applied(self.state.settings, key, settings)
        if key == "look.theme":
            self.theme = theme_named(settings.look.theme)
        elif key.startswith("keys."):
            self._use_keys(settings)
        elif key.startswith("model."):
            self.notify("the model settings apply from the next start on", markup=False)
        self.chat.show_bars()

    def _use_keys(self, settings: UserSettings) -> None:
        keys = asdict(settings.keys)
        self.set_keymap({f"chat.{name}": key for name, key in keys.items()})

    def action_interrupt(self) -> None:
        """Ctrl+C: stop the answer; with none, say how to leave."""
        if self.chat.runner.turn is not None:
            self.engine.cancel()
        else:
            self.notify("Ctrl+Q leaves", markup=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The menu (Ctrl+P): every slash command; those that need more go into the input."""
        if screen is not self.chat:
            return
        labels = key_labels(self.chat.user_settings.keys)
        for command in COMMANDS:
            key = labels.get(command.name, command.keys)
            keys = f" · {key}" if key else ""
            title = f"{command.name[:1].upper()}{command.name[1:]}"
            run = partial(self.chat.choose_command, command.name)
            yield SystemCommand(title, f"{command.help}{keys}", run)

    def on_unmount(self) -> None:
        """Free the model."""
        self.engine.close()

    def _tell(self, told: Told) -> None:
        self.post_message(EngineTold(told))


# -- starting the full-screen chat: what must happen before Textual takes the terminal -------------


def run_chat(
    settings: SessionSettings,
    user: UserSettings,
    *,
    save: bool,
    show_images: bool,
    theme: str,
    chat_id: str | None,
    question: str,
) -> int:
    """Run the application until the person leaves, or a signal ends it. Returns the exit code."""
    store = ChatStore()
    options = ChatOptions(
        settings=settings,
        opener=open_engine,
        store=store if save else None,
        show_images=show_images,
        theme=theme,
        user_settings=user,
        save_setting=save_setting,
        native_picture=find_native_pictures() if show_images else None,
        # Whoever has chats, or chose to keep none, has been here.
        is_first_run=save and not any(store.folder.glob("*.jsonl")),
        chat_id=chat_id,
        question=question,
    )
    spare_pauses()
    take_pastes_whole()
    app = ChatApp(options)
    leave_with_terminal(sys.stdin.fileno(), app.engine.close)
    app.run()
    return app.return_code or 0


def open_engine(settings: SessionSettings) -> ChatSession:
    """Load a model. On the engine's thread: the imports are the slow ones."""
    from safesteer_edge.session.isolated_session import open_isolated_session

    return open_isolated_session(settings)
