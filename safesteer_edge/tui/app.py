"""The chat application: screens over one engine thread."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.theme import Theme

from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.errors import SafeSteerError
from safesteer_edge.session.protocol import ChatSession, TurnSettings
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_file import save_setting
from safesteer_edge.session.settings_schema import UserSettings
from safesteer_edge.tui.chat_state import ChatState
from safesteer_edge.tui.commands.conversation import resume
from safesteer_edge.tui.commands.full_screen import applied, calibrate_command, theme_named
from safesteer_edge.tui.commands.table import COMMANDS
from safesteer_edge.tui.engine_thread import EngineThread, SessionOpener, Told, TurnDone
from safesteer_edge.tui.screens.chat_screen import ChatScreen
from safesteer_edge.tui.screens.compare_screen import COMPARISON_TURNS, CompareScreen
from safesteer_edge.tui.screens.models_screen import ModelRow, known_models
from safesteer_edge.tui.screens.settings_screen import SettingChanged
from safesteer_edge.tui.terminal import (
    find_native_pictures,
    leave_with_terminal,
    spare_pauses,
    take_pastes_whole,
)
from safesteer_edge.tui.widgets.composer import Submitted

# Two calm themes with one accent colour each.
_DARK = Theme(
    name="safesteer-dark",
    primary="#56b6a9",
    secondary="#7f8ea3",
    accent="#56b6a9",
    warning="#e5a84b",
    error="#ef6f6c",
    success="#56b6a9",
    foreground="#d9dce3",
    background="#15171c",
    surface="#1c1f26",
    panel="#262a33",
    dark=True,
    variables={"input-cursor-background": "#56b6a9", "border": "#4a505d"},
)
_LIGHT = Theme(
    name="safesteer-light",
    primary="#0b6e64",
    secondary="#5b6472",
    accent="#0b6e64",
    warning="#8f5200",
    error="#b3261e",
    success="#0b6e64",
    foreground="#22252b",
    background="#fbfaf7",
    surface="#f2f0ea",
    panel="#e5e2da",
    dark=False,
    variables={"input-cursor-background": "#0b6e64", "border": "#a8a59c"},
)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the application starts with.

    opener: makes a session of settings; called on the engine's thread. store: None saves nothing.
    native_picture: makes a widget of a decoded image by the terminal's own graphics; None: half
        blocks.
    guard_command: what makes a guard for a model. chat_id: of a saved chat to go on with. question:
        asked at once, unless empty.
    """

    settings: SessionSettings
    opener: SessionOpener
    store: ChatStore | None = None
    show_images: bool = True
    theme: str = "auto"
    user_settings: UserSettings = field(default_factory=UserSettings)
    save_setting: Callable[[str, UserSettings], object] = lambda key, settings: None
    native_picture: Callable[..., object] | None = None
    model_lister: Callable[[], Sequence[ModelRow]] = known_models
    guard_command: Callable[[str], Sequence[str]] = calibrate_command
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
        self.chat = ChatScreen(self.engine, self.state, options)
        for theme in (_DARK, _LIGHT):
            self.register_theme(theme)

    def on_mount(self) -> None:
        self.theme = theme_named(self.options.theme)
        self._use_keys(self.options.user_settings)
        self.engine.start()
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is left as it was
                asyncio.get_running_loop().add_signal_handler(
                    number, partial(self.exit, return_code=128 + number)
                )
        self.push_screen(self.chat)
        if self.options.chat_id is not None or self.options.question:
            self.chat.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """Do what the command line asked for, as if it were typed."""
        if self.options.chat_id is not None:
            worker = self.chat.run_worker(resume(self.chat, self.options.chat_id), exclusive=True)
            await worker.wait()
        if self.options.question:
            self.chat.post_message(Submitted(self.options.question))

    def _tell(self, told: Told) -> None:
        self.call_later(self._told, told)

    async def _told(self, told: Told) -> None:
        """The engine's thread says something: who has asked shows it, whatever lies over it."""
        if not self.is_running:
            return
        try:
            if not isinstance(told, TurnDone) or told.turn not in COMPARISON_TURNS:
                await self.chat.runner.told(told)
            elif isinstance(self.screen, CompareScreen):
                await self.screen.told(told)
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
            self.notify("model settings take effect the next time you start", markup=False)
        self.chat.show_state()

    def _use_keys(self, settings: UserSettings) -> None:
        keys = asdict(settings.keys)
        self.set_keymap({f"chat.{name}": key for name, key in keys.items()})

    def action_interrupt(self) -> None:
        """Ctrl+C: stop the answer; with none, say how to leave."""
        if self.chat.runner.turn is not None:
            self.engine.cancel()
        else:
            self.notify("press Ctrl+Q to quit", markup=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The menu (Ctrl+P): every slash command; those that need more go into the input."""
        if screen is not self.chat:
            return
        for command in COMMANDS:
            key = self.chat.key_labels.get(command.name, command.keys)
            keys = f" · {key}" if key else ""
            title = f"{command.name[:1].upper()}{command.name[1:]}"
            run = partial(self.chat.choose_command, command.name)
            yield SystemCommand(title, f"{command.help}{keys}", run)

    def on_unmount(self) -> None:
        self.engine.close()


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
