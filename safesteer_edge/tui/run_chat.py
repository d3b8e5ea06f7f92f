"""Starting the full-screen chat: what must happen before Textual takes the terminal."""

from __future__ import annotations

from safesteer_edge.chat_session import ChatSession
from safesteer_edge.settings import SessionSettings
from safesteer_edge.tui.app import ChatApp, ChatOptions


def run_chat(settings: SessionSettings, *, show_images: bool, theme: str) -> None:
    """Run the application until the person leaves."""
    ChatApp(
        ChatOptions(settings=settings, opener=open_engine, show_images=show_images, theme=theme)
    ).run()


def open_engine(settings: SessionSettings) -> ChatSession:
    """Load a model. On the engine's thread: the imports are the slow ones."""
    from safesteer_edge.isolation.isolated_session import open_isolated_session

    return open_isolated_session(settings)
