"""What the commands share: how they are declared, settings made of flags, output, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from safesteer_edge.errors import SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.session.settings import SessionSettings
from safesteer_edge.session.settings_file import with_flags
from safesteer_edge.session.settings_schema import SETTINGS, Setting, UserSettings, value_of

if TYPE_CHECKING:
    from safesteer_edge.library.pull import PullReport

OK: Final = 0
RUNTIME_ERROR: Final = 1
BAD_INPUT: Final = 2
REFUSED: Final = 4  # only where --fail-on-refusal asks for it
INTERRUPTED: Final = 130

_MIB: Final = 1 << 20
_REDRAW_S: Final = 0.2
_SHORT: Final = {"model.name": "-m"}
_LINE_S: Final = 10.0  # between two lines where there is no terminal to draw on


# -- commands as data ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument or option. names: `PROMPT` or `-o --output`; the rest as argparse has it."""

    names: str
    help: str | None = None
    type: Callable[[str], object] | None = None
    default: object = None
    metavar: str | tuple[str, ...] | None = None
    choices: Sequence[object] | None = None
    nargs: str | int | None = None
    action: str | type[argparse.Action] | None = None
    const: object = None
    dest: str | None = None
    required: bool | None = None

    def add_to(self, parser: Any) -> None:
        """Register it with a parser or a group of one."""
        details = {each.name: getattr(self, each.name) for each in fields(self)[1:]}
        given = {name: value for name, value in details.items() if value is not None}
        parser.add_argument(*self.names.split(), **given)


@dataclass(frozen=True, slots=True)
class Group:
    """Arguments below a title of their own; without one: that exclude each other."""

    title: str | None
    arguments: tuple[Argument, ...]

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Register them."""
        if self.title is None:
            group = parser.add_mutually_exclusive_group()
        else:
            group = parser.add_argument_group(self.title)
        for each in self.arguments:
            each.add_to(group)


class Parser(argparse.ArgumentParser):
    """Names the nearest command or option where there is none of that name."""

    def error(self, message: str) -> NoReturn:
        """Print usage and what is wrong, and exit with BAD_INPUT."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += self._nearest(found[1], re.findall(r"[\w.+-]+", found[2]))
        super().error(message)

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """As `error`, of arguments that nothing takes."""
        unknown = next((each for each in rest if each.startswith("-")), rest[0])
        known = list(self._option_string_actions)
        nearest = self._nearest(unknown.partition("=")[0], known)
        self.error(f"unrecognized arguments: {' '.join(rest)}{nearest}")

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)  # argparse would say nothing of a disk that is full
        else:
            super()._print_message(message, file)

    @staticmethod
    def _nearest(name: str, known: Sequence[str]) -> str:
        import difflib  # deferred: most commands are typed well

        nearest = difflib.get_close_matches(name, known, n=1)
        return f"; did you mean {nearest[0]!r}?" if nearest else ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, with what runs it, or with commands of its own. run: returns the exit code.

    With both, it runs where none of its commands is named; with neither, that prints its usage.
    """

    name: str
    help: str
    run: Callable[[argparse.Namespace], int] | None = None
    arguments: tuple[Argument | Group, ...] = ()
    description: str | None = None
    commands: tuple[Command, ...] = ()

    def add_to(self, subparsers: Any) -> None:
        """Register it."""
        parser: argparse.ArgumentParser = subparsers.add_parser(
            self.name, help=self.help, description=self.description or self.help
        )
        for each in (*self.arguments, VERBOSE):
            each.add_to(parser)
        if self.commands:
            below = parser.add_subparsers(title="commands", metavar="COMMAND")
            for command in self.commands:
                command.add_to(below)
        parser.set_defaults(run=self.run, parser=parser)


# It may stand in front of the command and behind: whichever is not given says nothing.
VERBOSE: Final = Argument(
    "--verbose",
    "show the log, including llama.cpp's",
    action="store_true",
    default=argparse.SUPPRESS,
)
JSON: Final = Argument("--json", "print one JSON object", action="store_true")
YES: Final = Argument("--yes", "answer yes to every question", action="store_true")
CONTINUE: Final = Group(
    None,
    (
        Argument("-c --continue", "continue the last chat", action="store_true"),
        Argument("--resume", "continue this chat ('chats list' shows them)", metavar="ID"),
    ),
)


# -- settings as flags -----------------------------------------------------------------------------


def setting_flags(*keys: str, defaults: SessionSettings | None = None) -> tuple[Argument, ...]:
    """The flags of settings. keys: `model.name`, or `model` for a whole section.

    defaults: of the command; None: the user's, whose values stand in for what is not given.
    """
    shown = UserSettings() if defaults is None else UserSettings(session=defaults)
    return tuple(
        _flag(each, value_of(shown, each))
        for key in keys
        for each in SETTINGS
        if each.flag and key in (each.key, each.section)
    )


def _flag(setting: Setting, default: object) -> Argument:
    text, name = setting.meaning.replace("unset:", "default:"), setting.parts[-1]
    flag = f"{_SHORT.get(setting.key, '')} {setting.flag}"
    if setting.flag_value is not None:
        value = str(setting.flag_value).lower()
        text = f"{setting.key} = {value} ({text})"
        return Argument(flag, text, action="store_const", const=setting.flag_value, dest=name)
    kind, choices = setting.kind, setting.choices
    return Argument(
        flag,
        text if default is None else f"{text} (default: {default})",
        type=kind,
        choices=choices or None,
        metavar=setting.metavar or (None if choices else "N" if kind is int else "X"),
        dest=name,
    )


MACHINE: Final = setting_flags("model.context", "model.gpu_layers", "model.threads")
MODEL: Final = Group(
    "model",
    (
        *setting_flags("model"),
        Argument(
            "--chat-template",
            "use this chat template instead of the model's own",
            metavar="builtin:NAME",
        ),
        Argument(
            "--think",
            "have a thinking model reason first, or not (default: the model's own choice)",
            action=argparse.BooleanOptionalAction,
            dest="thinking",
        ),
    ),
)
GUARD: Final = Group("guard", setting_flags("guard"))


def sampling(defaults: SessionSettings | None = None) -> Group:
    """How the sampler draws."""
    return Group("sampling", setting_flags("sampling", defaults=defaults))


def settings_with_flags(options: argparse.Namespace, base: UserSettings) -> UserSettings:
    """These settings with what the flags say. Raises SettingsError."""
    given = {each: getattr(options, each.parts[-1], None) for each in SETTINGS if each.flag}
    values = {each: each.kind(value) for each, value in given.items() if value is not None}
    chosen = with_flags(base, values)
    only_flags = {
        name: value
        for name in ("chat_template", "thinking")
        if (value := getattr(options, name, None)) is not None
    }
    return replace(chosen, session=replace(chosen.session, **only_flags))


def session_settings(options: argparse.Namespace, base: SessionSettings) -> SessionSettings:
    """The settings of a command that takes none of the user's, so that its figures compare."""
    return settings_with_flags(options, UserSettings(session=base)).session


# -- output ----------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """One line on stdout, with null for what is not a number."""
    plain = asdict(cast("Any", value)) if is_dataclass(value) else value
    print(json.dumps(without_nan(plain)))


def print_result(options: argparse.Namespace, value: object, lines: Iterable[str]) -> int:
    """Print the value where --json asks for it, else the lines; the exit code is OK."""
    if options.json:
        print_json(value)
    else:
        print("\n".join(lines))
    return OK


def say(line: str) -> None:
    """A line of narration on stderr. One that cannot be told is no error."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named, whole or not at all. Raises SettingsError."""
    try:
        with atomic_write(path, "w") as stream:
            stream.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> SettingsError:
    """What to say of a file that the user named."""
    return SettingsError(
        f"cannot write {str(path)!r}: {error.strerror or error}; give a file in a folder that "
        "exists and is writable"
    )


def confirmed(question: str, *details: str) -> bool:
    """Ask the person at the terminal, after these lines."""
    for line in details:
        say(line)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Progress:
    """What is done, on one line of a terminal; where there is none, on a line now and then.

    Any thread may tell it something.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_terminal = sys.stderr.isatty()
        self._is_drawn = False
        self._what = ""
        self._started_s = self._next_s = 0.0
        self._n_at_start = 0

    def show(self, what: str, n_done: int, n_total: int, *, unit: int = 1) -> None:
        """Called after each step; the first call of a phase may already have some done.

        unit: what is shown as one, such as 1 << 20 bytes.
        """
        with self._lock:
            now_s, is_over = time.monotonic(), n_done == n_total
            pause_s = _REDRAW_S if self._is_terminal else _LINE_S
            if what != self._what:
                self._what, self._started_s, self._n_at_start = what, now_s, n_done
                self._next_s = now_s if self._is_terminal else now_s + pause_s
            if not is_over and now_s < self._next_s:
                return
            self._next_s = now_s + pause_s
            line, n_new = f"{what}: {n_done // unit}/{n_total // unit}", n_done - self._n_at_start
            if n_new and not is_over:
                left_s = (now_s - self._started_s) / n_new * (n_total - n_done)
                line += f", {in_words(left_s)} left"
            self._draw(line, stays=is_over)

    def of(self, what: str, n_total: int) -> Callable[[int], None]:
        """What takes the number that is done alone."""
        return lambda n_done: self.show(what, n_done, n_total)

    def tell(self, line: str, *, stays: bool = True) -> None:
        """Say something on a line of its own, or until the next such line."""
        with self._lock:
            self._draw(line, stays=stays)

    def end(self) -> None:
        """Take away what was drawn for a while."""
        with self._lock:
            self._clear()

    def _draw(self, line: str, *, stays: bool) -> None:
        self._clear()
        self._is_drawn = self._is_terminal and not stays
        end = "" if self._is_drawn else "\n"
        print(strip_control_characters(line), end=end, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._is_drawn:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._is_drawn = False


def in_words(seconds: float) -> str:
    """E.g. '40 s', '6 min', '2.3 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Download:
    """Counts what is to come and what has come, for the threads that get it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._expected = self._come = 0

    def expect(self, n_bytes: int) -> None:
        """So much is to come in all."""
        with self._lock:
            self._expected += n_bytes

    def advance(self, n_bytes: int) -> None:
        """So much has come."""
        with self._lock:
            self._come += n_bytes
            self._progress.show("MiB here", self._come, self._expected, unit=_MIB)


def download_report(progress: Progress) -> PullReport:
    """What shows a pull on the terminal."""
    from safesteer_edge.library.pull import PullReport

    download = _Download(progress)
    return PullReport(progress.tell, download.expect, download.advance)
