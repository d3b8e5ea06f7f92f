"""`safesteer-edge chat`, the saved `chats`, and the `settings` that count unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.cli.calibrate_command import calibrate
from safesteer_edge.cli.models_command import run_pull
from safesteer_edge.cli.options import (
    BAD_INPUT,
    CONTINUE,
    GUARD,
    JSON,
    MACHINE,
    MODEL,
    OK,
    RUNTIME_ERROR,
    YES,
    Argument,
    Command,
    Group,
    confirmed,
    print_result,
    sampling,
    say,
    setting_flags,
    settings_with_flags,
    write_text,
)
from safesteer_edge.cli.piped_text import PipedLines, require_text
from safesteer_edge.errors import ChatFileError, SettingsError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import to_json
from safesteer_edge.session.settings_file import (
    read_settings,
    settings_path,
    user_settings,
    value_to_text,
    with_setting,
    without_setting,
    write_settings,
)
from safesteer_edge.session.settings_schema import SETTINGS, value_of

if TYPE_CHECKING:
    from safesteer_edge.chats.chat_store import ChatStore, ChatSummary


def run_chat_command(options: argparse.Namespace) -> int:
    """Chat, and return the exit code."""
    user = user_settings()
    chosen = settings_with_flags(options, user)
    store = _store() if chosen.chats.save else None
    question = " ".join(options.prompt)
    require_text(question, "the question")
    chat_id = chat_to_continue(options, store)
    lines = PipedLines()
    has_screen = lines.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if chosen.look.plain or not has_screen:
        from safesteer_edge.session.isolated_session import open_isolated_session
        from safesteer_edge.tui.plain_chat import PlainChat, run_plain_chat

        chat = PlainChat(
            open_isolated_session,
            chosen.session,
            store,
            lines=lines,
            out=sys.stdout,
            notes=sys.stderr,
        )
        has_answered = run_plain_chat(chat, chat_id, question)
        return OK if has_answered else RUNTIME_ERROR
    # Deferred: Textual.
    from safesteer_edge.tui.app import run_chat

    return run_chat(
        chosen.session,
        user,
        save=chosen.chats.save,
        show_images=chosen.look.images != "off",
        theme=chosen.look.theme,
        chat_id=chat_id,
        question=question,
    )


def chat_to_continue(options: argparse.Namespace, store: ChatStore | None) -> str | None:
    """The id of the chat that is named or was the last. Raises ChatFileError, SettingsError."""
    is_last: bool = getattr(options, "continue")
    if not is_last and options.resume is None:
        return None
    if store is None:
        raise SettingsError(
            "chats are not being saved, so there is none to continue (see --no-save)"
        )
    if options.resume is not None:
        return store.find(options.resume)
    last = next((each.id for each in store.list() if each.problem is None), None)
    if last is None:
        raise ChatFileError("there is no chat to continue yet; leave out --continue")
    return last


# -- run: whatever a model needs, and then a chat with it ------------------------------------------


def run_model(options: argparse.Namespace) -> int:
    """Download the model and make its guard, if they are missing and wanted; then chat."""
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.processes.native_libraries import n_usable_cores
    from safesteer_edge.session.choice import (
        calibration_time,
        choose_model,
        must_be_pulled,
        no_bundle_text,
    )

    name: str = options.model
    if must_be_pulled(name):
        pull = f"safesteer-edge models pull {name}"
        if not _agreed(options, f"{name} is not on this computer. Download it?", pull):
            return BAD_INPUT
        run_pull(argparse.Namespace(model=name, no_projector=False, json=False))
    choice = choose_model(name)
    bundle = options.bundle or choice.bundle
    if bundle is None and options.guard != "off":
        info, n_cores = check_language_model(choice.path), n_usable_cores()
        takes = calibration_time(info, n_cores=n_cores)
        question = f"There is no guard for {choice.name} yet. Make one now ({takes})?"
        if _agreed(options, question, no_bundle_text(choice, info, n_cores=n_cores)):
            calibrate(choice.path, options.mmproj)  # where the session finds it
        elif confirmed("Chat without a guard? Answers are then not checked."):
            options.guard = "off"
        else:
            return BAD_INPUT
    return run_chat_command(options)


def _agreed(options: argparse.Namespace, question: str, remedy: str) -> bool:
    """Ask, where somebody can answer. Raises SettingsError with what to do where nobody can."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise SettingsError(f"{question} Say so with --yes, or run: {remedy}")
    return confirmed(question)


# -- saved chats -----------------------------------------------------------------------------------


def run_list(options: argparse.Namespace) -> int:
    """Print the table, or JSON."""
    summaries = _store().list()
    if not summaries and not options.json:
        say("no chats yet")
        return OK
    value = {"chats": [asdict(each) for each in summaries]}
    return print_result(options, value, map(_row, summaries))


def run_search(options: argparse.Namespace) -> int:
    """Print the chats and messages that were found."""
    last = None
    for hit in _store().search(" ".join(options.words)):
        if hit.chat.id != last:
            print(_row(hit.chat))
            last = hit.chat.id
        print(f"    {hit.role}: {strip_control_characters(hit.snippet)}")
    if last is None:
        say("no matches")
    return OK


def run_export(options: argparse.Namespace) -> int:
    """Write a chat to stdout, or atomically to a file. Raises ChatFileError, SettingsError."""
    from safesteer_edge.chats.export import export_chat

    store = _store()
    log = store.read(store.find(options.id))
    text = export_chat(log, options.to, media_path=store.media.path)
    if options.output is None:
        print(text, end="")
    else:
        write_text(options.output, text)
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
        if not sys.stdin.isatty():
            raise ChatFileError(f"chat {chat_id!r} would be deleted for good; confirm with --yes")
        (summary,) = (each for each in store.list() if each.id == chat_id)
        if not confirmed("Delete this chat for good?", _row(summary)):
            return BAD_INPUT
    store.delete(chat_id)
    return OK


def _store() -> ChatStore:
    from safesteer_edge.chats.chat_store import ChatStore

    return ChatStore()


def _row(summary: ChatSummary) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.updated_at))
    if summary.problem is not None:
        return f"{summary.id}  {when}  damaged: {_one_line(summary.problem)}"
    title, model = _one_line(summary.title), _one_line(summary.model or "-")
    return f"{summary.id}  {when}  {title}  ({summary.n_messages} messages, {model})"


def _one_line(text: str) -> str:
    return " ".join(strip_control_characters(text).split())


# -- settings --------------------------------------------------------------------------------------


def run_show(options: argparse.Namespace) -> int:
    """Print all settings; a mark stands where one differs from its default."""
    settings = user_settings()
    values = {each: value_of(settings, each) for each in SETTINGS}
    texts = {each: value_to_text(value) for each, value in values.items()}
    key_width = max(len(each.key) for each in SETTINGS)
    value_width = max(map(len, texts.values()))
    lines = [
        f"{' ' if values[each] == each.default else '*'} {each.key:<{key_width}}  "
        f"{text:<{value_width}}  {each.meaning}"
        for each, text in texts.items()
    ]
    plain = {each.key: to_json(value) for each, value in values.items()}
    return print_result(options, plain, lines)


def run_path(_options: argparse.Namespace) -> int:
    """Print the file's path and nothing else."""
    print(settings_path())
    return OK


def run_set(options: argparse.Namespace) -> int:
    """Change one setting of the file. Raises SettingsError."""
    write_settings(with_setting(read_settings(), options.key, options.value))
    return OK


def run_unset(options: argparse.Namespace) -> int:
    """Bring one setting of the file back to its default. Raises SettingsError."""
    write_settings(without_setting(read_settings(), options.key))
    return OK


# -- the commands ----------------------------------------------------------------------------------

_CHAT_ARGUMENTS = (
    CONTINUE,
    GUARD,
    sampling(),
    Group("view", setting_flags("look", "chats")),
)
_QUESTION = Argument("prompt", "a first question", metavar="QUESTION", nargs="*")
CHAT = Command(
    "chat",
    "chat in the terminal",
    run_chat_command,
    (_QUESTION, MODEL, *_CHAT_ARGUMENTS),
    "Chat about text and pictures; the guard checks every word. Press F1 in the chat for all keys. "
    "Options that you leave out come from your settings.",
)
RUN = Command(
    "run",
    "download a model, make its guard, and chat",
    run_model,
    (
        Argument("model", "a name of 'models list', or a file", metavar="NAME|F.gguf"),
        _QUESTION,
        YES,
        *setting_flags("model.mmproj", "model.bundle"),
        *MACHINE,
        *_CHAT_ARGUMENTS,
    ),
    "Chat with a model. If it is not on this computer, it is downloaded. If it has no guard, one "
    "is made. You are asked first.",
)

_ID = Argument("id", metavar="ID")
CHATS = Command(
    "chats",
    "list, read, search, export, rename and delete saved chats",
    lambda _options: run_list(argparse.Namespace(json=False)),
    description="Your saved chats. ID is an id from 'chats list', or its beginning or end.",
    commands=(
        Command("list", "all chats, newest first", run_list, (JSON,)),
        Command(
            "show",
            "print a chat",
            lambda options: run_export(
                argparse.Namespace(id=options.id, to="markdown", output=None)
            ),
            (_ID,),
        ),
        Command(
            "search",
            "find messages with all these words",
            run_search,
            (Argument("words", metavar="WORD", nargs="+"),),
        ),
        Command(
            "export",
            "write a chat as Markdown, HTML or JSON",
            run_export,
            (
                _ID,
                Argument(
                    "--to",
                    "format (default: markdown)",
                    choices=("markdown", "html", "json"),
                    default="markdown",
                ),
                Argument("--output", "a file (default: stdout)", type=Path, metavar="F"),
            ),
        ),
        Command(
            "rename", "give a chat a title", run_rename, (_ID, Argument("title", metavar="TITLE"))
        ),
        Command("delete", "delete a chat and its files", run_delete, (_ID, YES)),
    ),
)

_KEY = Argument("key", "a name from 'settings show'", metavar="KEY")
SETTINGS_COMMAND = Command(
    "settings",
    "show and change the defaults of ask and chat",
    lambda _options: run_show(argparse.Namespace(json=False)),
    description="Your settings. Environment variables override the file; options override both.",
    commands=(
        Command("show", "every setting with its value and meaning", run_show, (JSON,)),
        Command("path", "where the settings file is", run_path),
        Command("set", "change a setting", run_set, (_KEY, Argument("value", metavar="VALUE"))),
        Command("unset", "reset a setting to its default", run_unset, (_KEY,)),
    ),
)
