"""The chat application: screens over one engine thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from safesteer_edge.chat_session import TurnSettings
from safesteer_edge.settings import SessionSettings
from safesteer_edge.tui.chat_state import ChatState
from safesteer_edge.tui.engine_thread import EngineThread, SessionOpener, Told
from safesteer_edge.tui.messages import EngineTold
from safesteer_edge.tui.screens.chat_screen import ChatScreen
from safesteer_edge.tui.themes import DARK, LIGHT, THEMES


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What the application starts with.

    opener: makes a session of settings; called on the engine's thread.
    native_picture: makes a widget of a decoded image by the terminal's own graphics; None: half
        blocks.
    """

    settings: SessionSettings
    opener: SessionOpener
    show_images: bool = True
    theme: str = "dark"
    native_picture: Callable[..., object] | None = None


class ChatApp(App[None]):
    """Run it; the model loads while the person types."""

    TITLE = "SafeSteer Edge"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_DISPLAY = "Ctrl+P"
    CSS = """
    Toast { background: $panel; padding: 0 1; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True),
        Binding("ctrl+c", "interrupt", "Stop", show=False, system=True),
    ]

    def __init__(self, options: ChatOptions) -> None:
        super().__init__()
        self.options = options
        self.native_picture = options.native_picture
        self.engine = EngineThread(options.opener, self._tell)
        self.state = ChatState(TurnSettings.of(options.settings))
        self.chat = ChatScreen(self.engine, self.state, show_images=options.show_images)
        for theme in THEMES:
            self.register_theme(theme)

    def on_mount(self) -> None:
        """Show the chat, then begin to load."""
        self.theme = LIGHT.name if self.options.theme == "light" else DARK.name
        self.push_screen(self.chat)
        self.engine.start()
        self.engine.open(self.options.settings)

    async def on_engine_told(self, message: EngineTold) -> None:
        """The engine's thread says something: the chat shows it, whatever lies over it."""
        await self.chat.told(message.told)

    def action_interrupt(self) -> None:
        """Ctrl+C: stop the answer; with none, say how to leave."""
        if self.chat.runner.record is not None:
            self.engine.cancel()
        else:
            self.notify("Ctrl+Q leaves", markup=False)

    def on_unmount(self) -> None:
        """Free the model."""
        self.engine.close()

    def _tell(self, told: Told) -> None:
        self.post_message(EngineTold(told))
