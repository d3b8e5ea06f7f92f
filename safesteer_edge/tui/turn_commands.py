"""Slash commands that set how the next answer is guarded and drawn, for both chats."""

from __future__ import annotations

from dataclasses import replace

from safesteer_edge.chat_session import TurnSettings
from safesteer_edge.errors import InputError
from safesteer_edge.guard.policy import GUARD_MODES, GuardMode
from safesteer_edge.session_info import SessionInfo
from safesteer_edge.tui.guard_words import MODE_MEANINGS

_MODES: dict[str, GuardMode] = {mode: mode for mode in GUARD_MODES}
TURN_COMMANDS = ("guard", "strength", "threshold", "temperature", "seed")


def changed(
    name: str, argument: str, settings: TurnSettings, info: SessionInfo | None
) -> tuple[TurnSettings, str]:
    """The settings after `/name argument`, and a sentence that says so.

    info: what is loaded. Without an argument nothing changes, and the sentence says what is.
    Raises SafeSteerError for what cannot be.
    """
    if not argument:
        return settings, f"{name} is {_now(name, settings)}"
    if name == "guard":
        return _guard(argument, settings, info)
    if name in ("strength", "threshold"):
        value = None if argument == "default" else _number(name, argument)
        if info is not None and info.policy is not None:
            info.policy.tightened(
                strength=value if name == "strength" else None,
                threshold=value if name == "threshold" else None,
            )
        shown = "the bundle's own" if value is None else f"{value:g}"
        return replace(settings, **{name: value}), f"guard {name} is {shown}"
    if name == "seed":
        if not argument.isdecimal():
            raise InputError(f"seed {argument!r}; expected a whole number from 0")
        sampling = replace(settings.sampling, seed=int(argument))
    else:
        sampling = replace(settings.sampling, temperature=_number(name, argument))
    return replace(settings, sampling=sampling), f"{name} is {argument}"


def _guard(
    argument: str, settings: TurnSettings, info: SessionInfo | None
) -> tuple[TurnSettings, str]:
    mode = _MODES.get(argument)
    if mode is None:
        raise InputError(f"guard {argument!r}; expected one of {', '.join(GUARD_MODES)}")
    if mode != "off" and info is not None and info.bundle is None:
        raise InputError(
            f"{info.model_name} is loaded without a guard bundle; make one with "
            "'safesteer-edge calibrate', or choose a guarded model"
        )
    meaning = MODE_MEANINGS[mode]
    return replace(settings, guard=mode), f"from the next answer on, {mode}: {meaning}"


def _now(name: str, settings: TurnSettings) -> str:
    if name == "guard":
        return f"{settings.guard}: {MODE_MEANINGS[settings.guard]}"
    if name in ("strength", "threshold"):
        value = getattr(settings, name)
        return "the bundle's own" if value is None else f"{value:g}"
    return f"{getattr(settings.sampling, name):g}"


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{name} {text!r}; expected a number") from error
