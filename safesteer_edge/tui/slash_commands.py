"""The slash commands: one table for the full-screen and the plain chat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from safesteer_edge.errors import InputError
from safesteer_edge.guard.policy import GUARD_MODES, GuardMode
from safesteer_edge.session.protocol import SessionInfo, TurnSettings
from safesteer_edge.tui.guard_words import MODE_MEANINGS
from safesteer_edge.tui.typed_paths import begins_with_path


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command. argument: what may follow it, as help shows it. keys: its key, if that is not one
    of the settings.

    plain: False where it only makes sense on a full screen.
    """

    name: str
    argument: str
    help: str
    keys: str = ""
    plain: bool = True

    @property
    def usage(self) -> str:
        """How it is typed."""
        return f"/{self.name} {self.argument}".rstrip()


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("help", "", "keys and commands"),
    SlashCommand("new", "", "begin a new chat"),
    SlashCommand("chats", "[WORDS]", "find, resume, rename, export, delete"),
    SlashCommand("models", "", "choose the model", plain=False),
    SlashCommand("model", "NAME|FILE", "switch to another model"),
    SlashCommand("settings", "", "sampling, guard strength, theme", plain=False),
    SlashCommand("inspect", "", "what the guard saw and did"),
    SlashCommand("thoughts", "", "what a thinking model wrote before its last answer"),
    SlashCommand("compare", "PROMPT", "answer once with the guard and once without"),
    SlashCommand("guard", "steer|refuse|monitor|off", "how the guard acts"),
    SlashCommand("strength", "X|default", "how hard the guard steers; larger is stricter"),
    SlashCommand("threshold", "X|default", "where the guard begins; smaller is stricter"),
    SlashCommand("temperature", "X", "0 is always the likeliest word"),
    SlashCommand("seed", "N", "the same seed gives the same answer"),
    SlashCommand("attach", "FILE", "add a picture, sound, PDF or text to the next message"),
    SlashCommand("detach", "[N|all]", "take an attachment off again"),
    SlashCommand("system", "[TEXT]", "a system prompt for this chat"),
    SlashCommand("regenerate", "", "answer the last question anew"),
    SlashCommand("edit", "[N]", "change a question and send it again"),
    SlashCommand("fork", "[N]", "go on from an earlier answer in a new chat"),
    SlashCommand("continue", "", "go on with an answer that was cut or stopped"),
    SlashCommand("copy", "[last|code N|all]", "copy to the clipboard"),
    SlashCommand("rename", "TITLE", "give this chat a name"),
    SlashCommand("export", "[md|html|json] [FILE]", "write this chat to a file"),
    SlashCommand("trace", "[FILE]", "write every step of the last answer to a file"),
    SlashCommand("theme", "[dark|light]", "dark or light", plain=False),
    SlashCommand("quit", "", "leave", "Ctrl+Q"),
)
COMMANDS_BY_NAME = {command.name: command for command in COMMANDS}


def parse_command(text: str) -> tuple[SlashCommand, str] | None:
    """The command in this input with its argument; None if it is no command, or begins with a path.

    Raises InputError that names the nearest command.
    """
    line = text.strip()
    if not line.startswith("/") or line.startswith("//") or "\n" in line:
        return None
    name, _, argument = line[1:].partition(" ")
    if name in COMMANDS_BY_NAME:
        return COMMANDS_BY_NAME[name], argument.strip()
    if begins_with_path(line):
        return None
    near = get_close_matches(name, COMMANDS_BY_NAME, n=1)
    hint = f"did you mean /{near[0]}? " if near else ""
    raise InputError(f"unknown command {'/' + name!r}; {hint}/help lists them")


def matching_commands(text: str, *, plain: bool = False) -> list[SlashCommand]:
    """Commands whose names begin as this input does."""
    if not text.startswith("/") or " " in text or "\n" in text:
        return []
    return [c for c in COMMANDS if c.name.startswith(text[1:]) and (c.plain or not plain)]


# -- slash commands that set how the next answer is guarded and drawn, for both chats --------------

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
