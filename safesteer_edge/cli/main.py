"""`safesteer-edge`: finds the command, maps errors to exit codes.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence

from safesteer_edge.cli.ask_command import ASK
from safesteer_edge.cli.bundles_command import BUNDLES
from safesteer_edge.cli.calibrate_command import CALIBRATE
from safesteer_edge.cli.chat_command import CHAT, CHATS, RUN, SETTINGS_COMMAND
from safesteer_edge.cli.convert_command import CONVERT
from safesteer_edge.cli.doctor_command import DOCTOR
from safesteer_edge.cli.eval_command import BENCH, EVAL
from safesteer_edge.cli.measure_command import MEASURE
from safesteer_edge.cli.models_command import MODELS
from safesteer_edge.cli.options import (
    BAD_INPUT,
    INTERRUPTED,
    OK,
    RUNTIME_ERROR,
    VERBOSE,
    Argument,
    Command,
    Parser,
    say,
)
from safesteer_edge.cli.serve_command import SERVE
from safesteer_edge.cli.states_command import STATES
from safesteer_edge.cli.verify_command import VERIFY
from safesteer_edge.errors import InputError, SafeSteerError, SettingsError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.version import VERSION


def run_completion(options: argparse.Namespace) -> int:
    """Print what a shell needs to complete commands and options. Raises SettingsError."""
    try:
        import shtab  # an extra's
    except ImportError as error:
        raise SettingsError(
            "completion needs the package 'shtab'; run: pip install 'safesteer-edge[completion]'"
        ) from error
    parser = _make_parser([command.name for command in COMMANDS])
    print(shtab.complete(parser, options.shell))
    return OK


COMPLETION = Command(
    "completion",
    "set up tab completion",
    run_completion,
    (Argument("shell", choices=("bash", "zsh", "fish")),),
    "Print a script that lets your shell complete commands with Tab. For bash: safesteer-edge "
    "completion bash > ~/.local/share/bash-completion/completions/safesteer-edge",
)
COMMANDS = (
    ASK,
    CHAT,
    RUN,
    CHATS,
    SERVE,
    MODELS,
    BUNDLES,
    DOCTOR,
    CALIBRATE,
    STATES,
    CONVERT,
    VERIFY,
    MEASURE,
    BENCH,
    EVAL,
    SETTINGS_COMMAND,
    COMPLETION,
)


# How a print may fail. Files that are named have errors of their own.
_PRINTING = (errno.EPIPE, errno.EBADF, errno.ENOSPC, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _replace_closed_streams()
    try:
        return _flushed(_run(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as asked:  # by --help, or for a bad option
        raise SystemExit(_flushed(int(asked.code or OK))) from None
    except OSError as error:  # of printing help
        return _not_printed(error)


def _run(arguments: Sequence[str]) -> int:
    parser = _make_parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "prompt") and not any(each.startswith("-") for each in rest):
        options.prompt += rest  # words of the question behind an option
    elif rest:
        options.parser.refuse(rest)
    if options.run is None:
        options.parser.print_help(sys.stderr)
        return BAD_INPUT
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer in any script reaches any encoding
            stream.reconfigure(errors="backslashreplace")
    previous_hook, sys.unraisablehook = sys.unraisablehook, _end_if_interrupted
    try:
        return options.run(options)
    except SafeSteerError as error:
        say(f"safesteer-edge: {_one_line(error)}")
        return BAD_INPUT if isinstance(error, InputError) else RUNTIME_ERROR
    except KeyboardInterrupt:
        say("safesteer-edge: interrupted")
        return INTERRUPTED
    except Exception as error:  # the last resort: one line for people, the rest with --verbose
        if isinstance(error, OSError) and error.errno in _PRINTING and error.filename is None:
            return _not_printed(error)
        logging.getLogger("safesteer_edge").debug("unexpected error", exc_info=True)
        say(
            f"safesteer-edge: unexpected {type(error).__name__}: {_one_line(error)}; "
            "run it again with --verbose, and report what it prints"
        )
        return RUNTIME_ERROR
    finally:
        sys.unraisablehook = previous_hook


def _replace_closed_streams() -> None:
    """Let a stream that was closed (`>&-`) refuse what is printed, and its number stay taken.

    A file that is opened next would have the number, and get what native code prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:  # or narration would be printed to stdout
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _flushed(exit_code: int) -> int:
    """The exit code, or another if stdout is closed or full: met here, and not at exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = _not_printed(error)
        return exit_code or failed
    return exit_code


def _not_printed(error: OSError) -> int:
    """The exit code where stdout does not take what is printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return OK  # the reader has what it wanted (`… | head`), and has gone
    say(f"safesteer-edge: cannot write to stdout: {error.strerror}; send it elsewhere")
    return RUNTIME_ERROR


def _end_if_interrupted(swallowed: sys.UnraisableHookArgs) -> None:
    """Ctrl-C in a callback of native code, which goes on loading as if nothing had been raised."""
    if swallowed.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(swallowed)
        return
    say("safesteer-edge: interrupted")
    os._exit(INTERRUPTED)  # the engine's children end with their pipes


def _make_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The options of the command that is named; of the others, what the list of them says."""
    parser = Parser(
        prog="safesteer-edge",
        description="Chat with AI models on your own computer; a guard checks every word.",
    )
    parser.add_argument("--version", action="version", version=f"safesteer-edge {VERSION}")
    VERBOSE.add_to(parser)
    parser.set_defaults(run=None, verbose=False, parser=parser)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        if command.name in arguments:
            command.add_to(subparsers)
        else:
            subparsers.add_parser(command.name, help=command.help)
    return parser


def _one_line(error: BaseException) -> str:
    """The message on one line; it may quote a file's own text, so no escape sequence gets out."""
    return strip_control_characters(" ".join(str(error).split()))
