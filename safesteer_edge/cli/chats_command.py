"""`safesteer-edge chats`: the saved chats, from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesteer_edge.cli.options import BAD_INPUT, OK
from safesteer_edge.errors import ChatFileError, SettingsError
from safesteer_edge.formats.display_text import strip_control_characters

if TYPE_CHECKING:
    from safesteer_edge.chats.chat_store import ChatStore, ChatSummary


_FORMATS = ("markdown", "html", "json")


def add_parser(subparsers: Any) -> None:
    """Register the command and its own commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chats",
        help="list, read, search, export, rename and delete saved chats",
        description="The saved chats. ID is an id of 'chats list', or its beginning or end.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="all chats, the latest first")
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=run_list)
    show = commands.add_parser("show", help="print a chat")
    show.add_argument("id", metavar="ID")
    show.set_defaults(run=run_show)
    search = commands.add_parser("search", help="messages that have all these words")
    search.add_argument("words", metavar="WORD", nargs="+")
    search.set_defaults(run=run_search)
    export = commands.add_parser("export", help="write a chat as Markdown, HTML or JSON")
    export.add_argument("id", metavar="ID")
    export.add_argument("--to", choices=_FORMATS, default="markdown", help="default: markdown")
    export.add_argument("--output", type=Path, metavar="F", help="a file (default: stdout)")
    export.set_defaults(run=run_export)
    rename = commands.add_parser("rename", help="give a chat a title")
    rename.add_argument("id", metavar="ID")
    rename.add_argument("title", metavar="TITLE")
    rename.set_defaults(run=run_rename)
    delete = commands.add_parser("delete", help="delete a chat and the media that only it has")
    delete.add_argument("id", metavar="ID")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    delete.set_defaults(run=run_delete)


def run_list(options: argparse.Namespace) -> int:
    """Print the table, or JSON."""
    summaries = _store().list()
    if options.json:
        print(json.dumps({"chats": [asdict(each) for each in summaries]}))
        return OK
    for each in summaries:
        print(_row(each))
    if not summaries:
        print("no chats yet", file=sys.stderr)
    return OK


def run_show(options: argparse.Namespace) -> int:
    """Print a chat as Markdown. Raises ChatFileError."""
    options.to, options.output = "markdown", None
    return run_export(options)


def run_search(options: argparse.Namespace) -> int:
    """Print the chats and messages that were found."""
    last = None
    for hit in _store().search(" ".join(options.words)):
        if hit.chat.id != last:
            print(_row(hit.chat))
            last = hit.chat.id
        print(f"    {hit.role}: {strip_control_characters(hit.snippet)}")
    if last is None:
        print("nothing found", file=sys.stderr)
    return OK


def run_export(options: argparse.Namespace) -> int:
    """Write a chat to stdout, or atomically to a file. Raises ChatFileError, SettingsError."""
    from safesteer_edge.chats.export import export_chat

    store = _store()
    log = store.read(store.find(options.id))
    text = export_chat(log, options.to, media_path=store.media.path)
    if options.output is None:
        print(text, end="")
        return OK
    from safesteer_edge.formats.atomic_write import atomic_write

    try:
        with atomic_write(options.output, "w") as stream:
            stream.write(text)
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(options.output)!r}: {error.strerror or error}; give a file in a "
            "folder that exists and is writable"
        ) from error
    return OK


def run_rename(options: argparse.Namespace) -> int:
    """Give a chat a title. Raises ChatFileError."""
    store = _store()
    store.rename(store.find(options.id), options.title)
    return OK


def run_delete(options: argparse.Namespace) -> int:
    """Delete a chat, after asking. Raises ChatFileError."""
    store = _store()
    chat_id = store.find(options.id)
    if not options.yes:
        (summary,) = (each for each in store.list() if each.id == chat_id)
        if not sys.stdin.isatty():
            raise ChatFileError(f"chat {chat_id!r} is deleted for good; say so with --yes")
        print(_row(summary), file=sys.stderr)
        print("Delete it for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return BAD_INPUT
    store.delete(chat_id)
    return OK


def _store() -> ChatStore:
    from safesteer_edge.chats.chat_store import ChatStore

    return ChatStore()


def _row(summary: ChatSummary) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.updated_at))
    if summary.problem is not None:
        return f"{summary.id}  {when}  damaged: {strip_control_characters(summary.problem)}"
    title = strip_control_characters(summary.title)
    model = strip_control_characters(summary.model or "-")
    return f"{summary.id}  {when}  {title}  ({summary.n_messages} messages, {model})"
