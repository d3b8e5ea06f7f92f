"""Slash commands of the full screen: what opens something, settings, and other models."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safesteer_edge.chats.recorded_chat import RecordedChat
from safesteer_edge.errors import BundleError, InputError, SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.library.catalogue import default_model
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.settings_file import known_setting
from safesteer_edge.tui.chat_state import compared_settings
from safesteer_edge.tui.commands import conversation

if TYPE_CHECKING:
    from safesteer_edge.session.settings_schema import UserSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen
    from safesteer_edge.tui.screens.models_screen import ModelRow

_ANSWERING_S = 0.2  # between two looks whether an answer has ended

# -- that show -------------------------------------------------------------------------------------


async def help_(screen: ChatScreen, _argument: str) -> None:
    from safesteer_edge.tui.screens.boxes import HelpScreen

    screen.app.push_screen(HelpScreen(screen.key_labels))


async def inspect(screen: ChatScreen, _argument: str) -> None:
    turns = screen.state.turns
    if not screen.close_inspector():
        screen.show_in_inspector(turns[-1] if turns else None)


async def thoughts(screen: ChatScreen, _argument: str) -> None:
    turn = screen.state.numbered("")
    view = screen.transcript.view_of(turn)
    if not turn.reasoning or view is None:
        raise InputError("there is no reasoning for the last answer")
    view.action_thoughts()


async def compare(screen: ChatScreen, argument: str) -> None:
    from safesteer_edge.tui.screens.compare_screen import CompareScreen

    screen.refuse_while_answering()
    state = screen.state
    turn, before = state.to_compare(argument)
    both = [turn.asked_again(each.guard) for each in compared_settings(state.settings)]
    screen.app.push_screen(CompareScreen(screen.engine, state, both, before))


async def theme(screen: ChatScreen, argument: str) -> None:
    if argument not in ("", "dark", "light"):
        raise InputError(f"theme {argument!r}; expected dark or light")
    is_dark = argument == "dark" or (not argument and not screen.app.current_theme.dark)
    screen.app.theme = f"safesteer-{'dark' if is_dark else 'light'}"


async def quit_(screen: ChatScreen, _argument: str) -> None:
    screen.app.exit()


# -- chats and files -------------------------------------------------------------------------------


async def new(screen: ChatScreen, _argument: str) -> None:
    """Leave the chat, which is kept, and begin another."""
    if not screen.state.turns:
        screen.action_focus_composer()
        return
    await screen.unqueue()
    screen.runner.leave()
    screen.state.begin_new()
    await screen.show_chat()
    if screen.state.info is not None:
        screen.in_background(screen.do(RecordedChat.start_new))


async def chats(screen: ChatScreen, argument: str) -> None:
    from safesteer_edge.tui.screens.chats_screen import ChatsScreen

    store = screen.store
    if store is None:
        raise InputError("chats are not being saved; turn saving on in /settings")

    def chosen(chat_id: str | None) -> None:
        if chat_id is not None:
            screen.in_background(_reopen(screen, chat_id))

    screen.app.push_screen(ChatsScreen(store, screen, argument), chosen)


async def _reopen(screen: ChatScreen, chat_id: str) -> None:
    await screen.unqueue()
    screen.runner.leave()
    await conversation.resume(screen, chat_id)


async def attach(screen: ChatScreen, argument: str) -> None:
    """Add a file to the next message; without one, choose it on a screen."""
    if argument:
        await conversation.attach(screen, argument)
        return
    from safesteer_edge.tui.screens.boxes import PicturePicker

    def chosen(path: Path | None) -> None:
        if path is not None:
            screen.in_background(screen.attach([path]))

    screen.app.push_screen(PicturePicker(Path.cwd()), chosen)


async def prompt(screen: ChatScreen, argument: str) -> None:
    """Put a saved prompt into the input, to be completed and sent."""
    screen.composer.replace_text(conversation.saved_prompt(argument))
    screen.action_focus_composer()


# -- settings: the screen for them, and what a changed one does at once ----------------------------


async def settings(screen: ChatScreen, _argument: str) -> None:
    """Show all settings."""
    from safesteer_edge.tui.screens.settings_screen import SettingsScreen

    screen.app.push_screen(
        SettingsScreen(screen.user_settings, lambda key, new: check_setting(screen, key, new))
    )


def check_setting(screen: ChatScreen, key: str, new: UserSettings) -> None:
    """Raise SettingsError if the model that is loaded cannot have it."""
    info, session = screen.state.info, new.session
    if key in ("guard.strength", "guard.threshold") and info is not None and info.policy:
        info.policy.tightened(strength=session.strength, threshold=session.threshold)


def applied(settings: TurnSettings, key: str, new: UserSettings) -> TurnSettings:
    """The settings of the next answer after one of the user's was changed."""
    root, name, *inner = known_setting(key).parts
    if root != "session" or not hasattr(settings, name):
        return settings
    value = getattr(new.session, name)
    if inner:  # a field of the sampler: its others stay as the command line has them
        value = replace(getattr(settings, name), **{inner[0]: getattr(value, inner[0])})
    return replace(settings, **{name: value})


def theme_named(name: str) -> str:
    """The theme for a setting; `auto` asks COLORFGBG, which some terminals set."""
    if name == "auto":
        background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
        name = "light" if background in ("7", "15") else "dark"
    return "safesteer-light" if name == "light" else "safesteer-dark"


# -- another model ---------------------------------------------------------------------------------


async def models(screen: ChatScreen, _argument: str) -> None:
    from safesteer_edge.tui.screens.models_screen import ModelsScreen

    info = screen.state.info
    loaded = info.model_name if info else None

    def chosen(row: ModelRow | None) -> None:
        if row is not None and row.name != loaded:
            _switch_or_ask(screen, row.name, has_guard=row.has_bundle)

    screen.app.push_screen(ModelsScreen(screen.model_lister, loaded), chosen)


async def model(screen: ChatScreen, argument: str) -> None:
    """Switch to a model by name or file; without an argument, open the list."""
    if not argument:
        await models(screen, "")
        return
    row = next((row for row in screen.model_lister() if row.name == argument), None)
    if row is not None and row.path is None:
        raise InputError(f"{argument} is not installed; run: {row.install}")
    if row is None and not argument.endswith(".gguf"):
        raise InputError(f"there is no model {argument!r}; see /models, or give a .gguf file")
    _switch_or_ask(screen, argument, has_guard=row is not None and row.has_bundle)


def _switch_or_ask(screen: ChatScreen, name: str, *, has_guard: bool) -> None:
    """Load a model; one that no guard was made for, if that is wanted."""
    from safesteer_edge.session.choice import choose_model

    with suppress(SafeSteerError):  # as whoever loads it will say
        has_guard = has_guard or choose_model(name).bundle is not None
    if has_guard:
        _switch_to(screen, name, guarded=True)
    else:
        offer_guard(screen, name)


def offer_guard(screen: ChatScreen, name: str | None) -> None:
    """A model has no guard: make one now, or chat without. name: None is the default."""
    from safesteer_edge.formats.model_file import check_language_model
    from safesteer_edge.processes.native_libraries import n_usable_cores
    from safesteer_edge.session.choice import calibration_time, choose_model
    from safesteer_edge.tui.screens.boxes import ChoiceScreen

    name = name or default_model().name
    how_long = ""
    with suppress(SafeSteerError):
        info = check_language_model(choose_model(name).path)
        how_long = f" ({calibration_time(info, n_cores=n_usable_cores())})"

    def chosen(choice: str | None) -> None:
        if choice == "make":
            screen.in_background(_make_guard(screen, name))
        elif choice == "off":
            _switch_to(screen, name, guarded=False)

    text = (
        f"There is no guard for {name} yet. You can make one on this computer. Without it, answers "
        "are not checked."
    )
    choices = (("make", f"Make a guard now{how_long}"), ("off", "Chat without a guard"))
    screen.app.push_screen(ChoiceScreen("No guard", text, choices), chosen)


async def _make_guard(screen: ChatScreen, name: str) -> None:
    """Make a guard while this chat goes on with what is loaded, then load the model."""
    if screen.is_making_guard:
        raise InputError("a guard is being made; wait for it (if you quit, it continues next time)")
    screen.is_making_guard = True

    def show(line: str) -> None:
        screen.status.show_state(f"◐ making a guard for {name}: {line}")

    try:
        show("starting")
        await make_guard(screen.guard_command(name), show)
    except SafeSteerError:
        screen.status.show_state("● ready" if screen.state.info else "✗ no model")
        raise
    finally:
        screen.is_making_guard = False
    while screen.runner.turn is not None:
        await asyncio.sleep(_ANSWERING_S)
    screen.say(f"the guard for {name} is ready")
    _switch_to(screen, name, guarded=True)


def _switch_to(screen: ChatScreen, name: str, *, guarded: bool) -> None:
    """Free the present model and load another; the chat stays."""
    screen.refuse_while_answering()
    state = screen.state
    guard = state.settings.guard if guarded else "off"
    if guarded and guard == "off" and (state.info is None or state.info.bundle is None):
        guard = "steer"  # it was off for want of a guard, and now there is one
    state.settings = replace(state.settings, guard=guard, strength=None, threshold=None)
    screen.runner.load(conversation.switched(screen.session_settings, name, guard), name)


# -- a guard made from within the chat: `calibrate` in a process of its own, its progress shown ----


def calibrate_command(model: str) -> list[str]:
    """What makes a guard for a model and puts it where sessions find it."""
    return [sys.executable, "-m", "safesteer_edge", "calibrate", model]


async def make_guard(command: Sequence[str], show: Callable[[str], None]) -> None:
    """Run it to its end. show: called with each line of its progress.

    If this is cancelled the process is interrupted: what it has read, the next run finds.
    Raises BundleError with the last line if it fails.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )

    def read() -> None:
        assert process.stderr is not None  # it is a pipe
        with suppress(RuntimeError), process.stderr:  # the loop may have ended
            for line in process.stderr:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            process.wait()
            loop.call_soon_threadsafe(lines.put_nowait, None)

    # A thread: what asyncio keeps of a process does not outlive its loop.
    threading.Thread(target=read, name="guard", daemon=True).start()
    last = ""
    try:
        while (line := await lines.get()) is not None:
            last = strip_control_characters(line).strip() or last
            show(last)
    finally:
        if process.poll() is None and sys.platform == "win32":
            process.terminate()
        elif process.poll() is None:
            process.send_signal(signal.SIGINT)
    if process.returncode:
        raise BundleError(f"no guard was made: {last.removeprefix('safesteer-edge: ')}")
