"""Commands that set how the next answer is guarded and drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from safesteer_edge.errors import InputError
from safesteer_edge.guard.policy import GUARD_MODES
from safesteer_edge.tui.guard_words import MODE_MEANINGS

if TYPE_CHECKING:
    from safesteer_edge.chat_session import TurnSettings
    from safesteer_edge.tui.screens.chat_screen import ChatScreen


async def guard(screen: ChatScreen, argument: str) -> None:
    """Choose how the guard acts; without an argument, say how it does."""
    state = screen.state
    mode = next((mode for mode in GUARD_MODES if mode == argument), None)
    if mode is None:
        if argument:
            raise InputError(f"guard {argument!r}; expected one of {', '.join(GUARD_MODES)}")
        now = state.settings.guard
        screen.say(f"{now}: {MODE_MEANINGS[now]}")
        return
    if mode != "off" and state.info is not None and state.info.bundle is None:
        raise InputError(
            f"{state.info.model_name} is loaded without a guard bundle; make one with "
            "'safesteer-edge calibrate', or choose a guarded model (F3)"
        )
    use(screen, replace(state.settings, guard=mode))
    screen.say(f"from the next answer on, {mode}: {MODE_MEANINGS[mode]}")


async def strength(screen: ChatScreen, argument: str) -> None:
    """Set λ; only a larger one than the bundle's is taken."""
    state = screen.state
    value = None if argument == "default" else _number("strength", argument)
    _check_tightens(screen, strength=value, threshold=None)
    use(screen, replace(state.settings, strength=value))
    screen.say(f"guard strength is {'the bundle’s own' if value is None else f'{value:g}'}")


async def threshold(screen: ChatScreen, argument: str) -> None:
    """Set τ; only a smaller one than the bundle's is taken."""
    state = screen.state
    value = None if argument == "default" else _number("threshold", argument)
    _check_tightens(screen, strength=None, threshold=value)
    use(screen, replace(state.settings, threshold=value))
    screen.say(f"guard threshold is {'the bundle’s own' if value is None else f'{value:g}'}")


async def temperature(screen: ChatScreen, argument: str) -> None:
    """Set the sampler's temperature."""
    sampling = screen.state.settings.sampling
    value = _number("temperature", argument)
    use(
        screen,
        replace(screen.state.settings, sampling=replace(sampling, temperature=value)),
    )
    screen.say(f"temperature is {value:g}")


async def seed(screen: ChatScreen, argument: str) -> None:
    """Set the sampler's seed."""
    if not argument.isdecimal():
        raise InputError(f"seed {argument!r}; expected a whole number from 0")
    sampling = replace(screen.state.settings.sampling, seed=int(argument))
    use(screen, replace(screen.state.settings, sampling=sampling))
    screen.say(f"seed is {argument}")


async def system(screen: ChatScreen, argument: str) -> None:
    """Set the chat's system prompt; without an argument, show it."""
    state = screen.state
    if not argument:
        screen.say(f"system prompt: {state.system or 'none'}")
        return
    state.system = None if argument in ("none", "off") else argument
    screen.chat_changed()
    screen.say("the system prompt applies from the next answer on")


def use(screen: ChatScreen, settings: TurnSettings) -> None:
    """Let the next answer have these settings."""
    screen.state.settings = settings
    screen.show_bars()


def _check_tightens(screen: ChatScreen, *, strength: float | None, threshold: float | None) -> None:
    info = screen.state.info
    if info is not None and info.policy is not None:
        info.policy.tightened(strength=strength, threshold=threshold)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{name} {text!r}; expected a number") from error
