"""`safesteer-edge chat`: a chat in the terminal, full-screen or line by line."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import (
    OK,
    RUNTIME_ERROR,
    add_guard_options,
    add_model_options,
    add_sampling_options,
    session_settings,
)

if TYPE_CHECKING:
    from safesteer_edge.session.settings import SessionSettings


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat",
        help="chat in the terminal",
        description="Chat about text and pictures, guarded while it decodes. F1 shows all keys; "
        "what is not given here comes from the settings file.",
    )
    add_model_options(parser)
    add_guard_options(parser)
    add_sampling_options(parser)
    view = parser.add_argument_group("view")
    view.add_argument(
        "--plain", action="store_true", help="line by line: for pipes and screen readers"
    )
    view.add_argument("--no-images", action="store_true", help="names of pictures, no views")
    view.add_argument("--theme", choices=("auto", "dark", "light"))
    view.add_argument("--no-save", action="store_true", help="keep no chat on the disk")
    # None: not given, so that the settings file decides.
    parser.set_defaults(
        run=run,
        guard=None,
        rerank=None,
        max_tokens=None,
        kv_type=None,
        **dict.fromkeys(_SAMPLING),
    )


def run(options: argparse.Namespace) -> int:
    """Chat, and return the exit code."""
    from safesteer_edge.session.settings_file import read_settings

    user = read_settings()
    settings = _with_file(options, user.session_settings())
    save = user.chats.save and not options.no_save
    if options.plain or user.look.plain or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _run_plain(settings, save=save)
    # Deferred: Textual.
    from safesteer_edge.tui.app import run_chat

    show_images = not options.no_images and user.look.images != "off"
    theme = options.theme or user.look.theme
    run_chat(settings, user, save=save, show_images=show_images, theme=theme)
    return OK


def _run_plain(settings: SessionSettings, *, save: bool) -> int:
    from safesteer_edge.chats.chat_store import ChatStore
    from safesteer_edge.session.isolated_session import open_isolated_session
    from safesteer_edge.tui.plain_chat import run_plain_chat

    store = ChatStore() if save else None
    return OK if run_plain_chat(open_isolated_session, settings, store) else RUNTIME_ERROR


def _with_file(options: argparse.Namespace, base: SessionSettings) -> SessionSettings:
    """The settings that the options make, those of the file where they say nothing."""
    from_file: dict[str, object] = {
        "guard": base.guard,
        "rerank": base.rerank,
        "strength": base.strength,
        "threshold": base.threshold,
        "max_tokens": base.max_tokens,
        "ctx": base.n_ctx,
        "kv_type": base.kv_type,
        "gpu_layers": base.n_gpu_layers,
        "threads": base.n_threads,
        **{name: getattr(base.sampling, name) for name in _SAMPLING},
    }
    if options.model is None:  # the file's projector and bundle belong to the file's model
        from_file |= {"model": base.model, "mmproj": base.mmproj, "bundle": base.bundle}
    for name, value in from_file.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return replace(session_settings(options), prefers_thinking=base.prefers_thinking)
