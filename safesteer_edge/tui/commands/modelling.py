"""Commands that change what runs: another model, and the comparison with and without the guard."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.tui.commands.asking import check_idle
from safesteer_edge.tui.model_rows import ModelRow
from safesteer_edge.tui.screens.boxes import ChoiceScreen
from safesteer_edge.tui.shown_turn import ShownTurn, messages_of

if TYPE_CHECKING:
    from safesteer_edge.session.settings import SessionSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def models(screen: ChatScreen, _argument: str) -> None:
    """Choose a model from a list."""
    from safesteer_edge.tui.screens.models_screen import ModelsScreen

    info = screen.state.info
    loaded = info.model_name if info else None

    def chosen(row: ModelRow | None) -> None:
        if row is None or row.name == loaded:
            return
        if row.has_bundle:
            switch_to(screen, row.name, guarded=True)
        else:
            _ask_about_guard(screen, row.name)

    screen.app.push_screen(ModelsScreen(screen.model_lister, loaded), chosen)


async def model(screen: ChatScreen, argument: str) -> None:
    """Switch to a model by name or file; without an argument, open the list."""
    if not argument:
        await models(screen, "")
        return
    rows = {row.name: row for row in screen.model_lister()}
    row = rows.get(argument)
    if row is not None and row.path is None:
        raise InputError(f"{argument} is not installed; run: {row.install}")
    if row is None and not argument.endswith(".gguf"):
        raise InputError(f"unknown model {argument!r}; /models lists them, or give a .gguf file")
    if row is not None and row.has_bundle:
        switch_to(screen, argument, guarded=True)
    else:
        _ask_about_guard(screen, argument)


def switch_to(screen: ChatScreen, name: str, *, guarded: bool) -> None:
    """Free the present model and load another; the chat stays."""
    check_idle(screen)
    state = screen.state
    guard = state.settings.guard if guarded else "off"
    if guarded and guard == "off" and not _has_bundle(screen):
        guard = "steer"  # it was off for want of a guard, and now there is one
    state.settings = replace(state.settings, guard=guard, strength=None, threshold=None)
    settings: SessionSettings = replace(
        screen.session_settings,
        model=name,
        mmproj=None,
        bundle=None,
        guard=guard,
        strength=None,
        threshold=None,
    )
    screen.listener.load(settings, name)


async def compare(screen: ChatScreen, argument: str) -> None:
    """Answer a question, or the last one, with the guard and without."""
    from safesteer_edge.tui.screens.compare_screen import CompareScreen

    state = screen.state
    check_idle(screen)
    if state.info is None or not _has_bundle(screen):
        raise InputError("there is no guard to compare with; load a guarded model (/models)")
    if argument:
        turn = ShownTurn(argument)
        before = messages_of(state.system, state.turns)
    else:
        turn = state.numbered("")
        before = state.messages_before(turn)
    uncalibrated = state.info.is_calibrated is False
    screen.app.push_screen(
        CompareScreen(screen.engine, turn, before, state.settings, is_uncalibrated=uncalibrated)
    )


def _ask_about_guard(screen: ChatScreen, name: str) -> None:
    text = (
        f"No guard was made for {name}. It can be made on this machine; without one, its answers "
        "are its own, unchecked."
    )

    def chosen(choice: str | None) -> None:
        if choice == "calibrate":
            screen.say(f"in a shell, run: safesteer-edge calibrate {name} -o my-guard/")
        elif choice == "off":
            switch_to(screen, name, guarded=False)

    choices = (("calibrate", "How to make a guard"), ("off", "Chat with the guard off"))
    screen.app.push_screen(ChoiceScreen("No guard", text, choices), chosen)


def _has_bundle(screen: ChatScreen) -> bool:
    info = screen.state.info
    return info is not None and info.bundle is not None
