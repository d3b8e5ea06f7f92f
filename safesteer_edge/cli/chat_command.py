"""`safesteer-edge chat`: a chat in the terminal, full-screen."""

from __future__ import annotations

import argparse
from typing import Any

from safesteer_edge.cli.exit_codes import OK
from safesteer_edge.cli.model_options import (
    add_guard_options,
    add_model_options,
    add_sampling_options,
    session_settings,
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat",
        help="chat in the terminal",
        description="Chat about text and pictures, guarded while it decodes. F1 shows all keys.",
    )
    add_model_options(parser)
    add_guard_options(parser)
    add_sampling_options(parser)
    view = parser.add_argument_group("view")
    view.add_argument("--no-images", action="store_true", help="names of pictures, no views")
    view.add_argument("--theme", choices=("dark", "light"), help="default: the settings file's")
    parser.set_defaults(run=run, max_tokens=1024)


def run(options: argparse.Namespace) -> int:
    """Chat, and return the exit code."""
    settings = session_settings(options)
    from safesteer_edge.tui.run_chat import run_chat

    run_chat(settings, show_images=not options.no_images, theme=options.theme or "dark")
    return OK
