"""The slash commands of both chats: one table, and how what is typed finds its row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from safesteer_edge.errors import InputError
from safesteer_edge.tui.attached_files import begins_with_path
from safesteer_edge.tui.commands import conversation, full_screen, line_by_line

if TYPE_CHECKING:
    from safesteer_edge.session.settings_schema import KeysSection

Handler = Callable[[Any, str], Awaitable[None]]  # the chat, and what was typed behind the name


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command. argument: what may follow it, as help shows it.

    run: what it does on the full screen. run_plain: line by line; None where it needs the screen.
    keys: its key, if that is not one of the settings. other_names: what other programs call it.
    """

    name: str
    argument: str
    help: str
    run: Handler
    run_plain: Handler | None
    keys: str = ""
    other_names: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()

    @property
    def needs_argument(self) -> bool:
        """True if it does nothing without one."""
        return bool(self.argument) and not self.argument.startswith("[")


def _same(name: str, argument: str, help_: str, run: Handler) -> SlashCommand:
    return SlashCommand(name, argument, help_, run, run)


def _setting(name: str, argument: str, help_: str) -> SlashCommand:
    return _same(name, argument, help_, conversation.turn_setting(name))


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("help", "", "show keys and commands", full_screen.help_, line_by_line.help_),
    SlashCommand(
        "new", "", "start a new chat", full_screen.new, line_by_line.new, other_names=("clear",)
    ),
    SlashCommand(
        "chats", "[WORDS]", "find and reopen earlier chats", full_screen.chats, line_by_line.chats
    ),
    SlashCommand("models", "", "choose a model", full_screen.models, None),
    SlashCommand(
        "model", "NAME|FILE", "switch to another model", full_screen.model, line_by_line.model
    ),
    SlashCommand("settings", "", "change settings", full_screen.settings, None),
    SlashCommand(
        "inspect",
        "",
        "show what the guard saw and did",
        full_screen.inspect,
        line_by_line.inspect,
    ),
    SlashCommand(
        "thoughts",
        "",
        "show the model's reasoning for its last answer",
        full_screen.thoughts,
        line_by_line.thoughts,
    ),
    SlashCommand(
        "compare",
        "[QUESTION]",
        "answer twice: without the guard, and with it",
        full_screen.compare,
        line_by_line.compare,
    ),
    _setting("guard", "steer|refuse|monitor|off", "choose how the guard acts"),
    _setting("strength", "X|default", "how hard the guard steers (larger is stricter)"),
    _setting("threshold", "X|default", "when the guard starts to act (smaller is stricter)"),
    _setting("temperature", "X", "how varied answers are (0: always the likeliest word)"),
    _setting("seed", "N", "set the random seed (same seed, same answer)"),
    SlashCommand(
        "attach",
        "[FILE]",
        "attach a picture, sound, PDF or text file",
        full_screen.attach,
        line_by_line.attach,
        other_names=("image",),
    ),
    SlashCommand(
        "detach", "[N|all]", "remove an attachment", conversation.detach, line_by_line.detach
    ),
    SlashCommand(
        "prompt",
        "[NAME]",
        "use one of your saved prompts",
        full_screen.prompt,
        line_by_line.prompt,
    ),
    _same("system", "[TEXT]", "set the system prompt of a new chat", conversation.system),
    _same("regenerate", "", "answer the last question again", conversation.regenerate),
    _same("edit", "[N]", "change a question and ask it again", conversation.edit),
    _same("undo", "", "take back the last question and its answer", conversation.undo),
    _same("fork", "[N]", "continue from an earlier answer in a copy", conversation.fork),
    _same("continue", "", "continue an unfinished answer", conversation.continue_answer),
    _same("compact", "", "summarize the chat, to make room for more", conversation.compact),
    _same("copy", "[last|code N|all]", "copy to the clipboard", conversation.copy),
    SlashCommand("rename", "TITLE", "rename this chat", conversation.rename, line_by_line.rename),
    _same("export", "[md|html|json] [FILE]", "save this chat to a file", conversation.export),
    _same("trace", "[FILE]", "save every step of the last answer to a file", conversation.trace),
    SlashCommand("theme", "[dark|light]", "switch between dark and light", full_screen.theme, None),
    SlashCommand(
        "quit",
        "",
        "leave",
        full_screen.quit_,
        line_by_line.quit_,
        keys="Ctrl+Q",
        other_names=("exit", "bye"),
    ),
)
COMMANDS_BY_NAME = {
    name: command for command in COMMANDS for name in (command.name, *command.other_names)
}


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
    raise InputError(f"unknown command {'/' + name!r}; {hint}/help lists all commands")


def matching_commands(text: str) -> list[SlashCommand]:
    """Commands whose names begin as this input does."""
    if not text.startswith("/") or " " in text or "\n" in text:
        return []
    typed = text[1:]
    return [
        command
        for command in COMMANDS
        if any(name.startswith(typed) for name in (command.name, *command.other_names))
    ]


# -- keys as people read them: what the settings name `ctrl+n` is Ctrl+N on the screen -------------

_KEY_NAMES = {"escape": "Esc", "pageup": "Page Up", "pagedown": "Page Down"}


def key_labels(keys: KeysSection) -> Mapping[str, str]:
    """The label of every command that has a key in the settings: of its first key."""
    return {name: _key_label(key) for name, key in asdict(keys).items()}


def _key_label(key: str) -> str:
    parts = key.split(",")[0].strip().split("+")
    return "+".join(_KEY_NAMES.get(part, part[:1].upper() + part[1:]) for part in parts)
