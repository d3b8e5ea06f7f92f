"""Starting the full-screen chat: what must happen before Textual takes the terminal."""

from __future__ import annotations

import sys

from safesteer_edge.chat_session import ChatSession
from safesteer_edge.chats.chat_store import ChatStore
from safesteer_edge.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions
from safesteer_edge.tui.garbage_pauses import spare_pauses
from safesteer_edge.tui.native_pictures import find_native_pictures
from safesteer_edge.tui.terminal_watch import leave_with_terminal
from safesteer_edge.tui.whole_pastes import take_pastes_whole
from safesteer_edge.user_settings.schema import UserSettings
from safesteer_edge.user_settings.settings_file import write_settings


def run_chat(
    settings: SessionSettings,
    user: UserSettings,
    *,
    save: bool,
    show_images: bool,
    theme: str,
) -> None:
    """Run the application until the person leaves."""
    store = ChatStore()
    options = ChatOptions(
        settings=settings,
        opener=open_engine,
        store=store if save else None,
        show_images=show_images,
        theme=theme,
        user_settings=user,
        save_settings=write_settings,
        native_picture=find_native_pictures() if show_images else None,
        # Whoever has chats, or chose to keep none, has been here.
        is_first_run=save and not any(store.folder.glob("*.jsonl")),
    )
    spare_pauses()
    take_pastes_whole()
    app = ChatApp(options)
    leave_with_terminal(sys.stdin.fileno(), app.engine.close)
    app.run()


def open_engine(settings: SessionSettings) -> ChatSession:
    """Load a model. On the engine's thread: the imports are the slow ones."""
    from safesteer_edge.isolation.isolated_session import open_isolated_session

    return open_isolated_session(settings)
