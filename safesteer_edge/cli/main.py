"""`safesteer-edge`: finds the command, maps errors to exit codes.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from safesteer_edge.cli.ask_command import ASK
from safesteer_edge.cli.calibrate_command import CALIBRATE
from safesteer_edge.cli.chat_command import CHAT, CHATS, SETTINGS_COMMAND
from safesteer_edge.cli.convert_command import CONVERT
from safesteer_edge.cli.doctor_command import DOCTOR
from safesteer_edge.cli.eval_command import BENCH, EVAL
from safesteer_edge.cli.measure_command import MEASURE
from safesteer_edge.cli.models_command import MODELS
from safesteer_edge.cli.options import BAD_INPUT, INTERRUPTED, RUNTIME_ERROR
from safesteer_edge.cli.verify_command import VERIFY
from safesteer_edge.errors import InputError, SafeSteerError
from safesteer_edge.formats.display_text import strip_control_characters
from safesteer_edge.formats.version import VERSION
from safesteer_edge.processes.cores import spin_briefly

COMMANDS = (
    ASK,
    CHAT,
    CHATS,
    MODELS,
    DOCTOR,
    CALIBRATE,
    CONVERT,
    VERIFY,
    MEASURE,
    BENCH,
    EVAL,
    SETTINGS_COMMAND,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    _set_up_logging(verbose=options.verbose)
    _set_up_streams()
    spin_briefly(os.environ)
    try:
        exit_code = options.run(options)
        sys.stdout.flush()  # a reader that has gone is met here, and not at exit
        return exit_code
    except SafeSteerError as error:
        print(f"safesteer-edge: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, InputError) else RUNTIME_ERROR
    except KeyboardInterrupt:
        print("safesteer-edge: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout has gone (`… | head`): nothing left to say, and no traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUNTIME_ERROR
    except Exception as error:  # the last resort: one line for people, the rest with --verbose
        logging.getLogger("safesteer_edge").debug("unexpected error", exc_info=True)
        kind = type(error).__name__
        print(
            f"safesteer-edge: unexpected {kind}: {_one_line(error)}; "
            "run again with --verbose and report what it prints",
            file=sys.stderr,
        )
        return RUNTIME_ERROR


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safesteer-edge",
        description="Local multimodal models that stay safe while they decode.",
    )
    parser.add_argument("--version", action="version", version=f"safesteer-edge {VERSION}")
    parser.add_argument("--verbose", action="store_true", help="show the log, llama.cpp's as well")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers)
    return parser


def _set_up_logging(*, verbose: bool) -> None:
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stderr)


def _set_up_streams() -> None:
    """Let an answer in any script reach a terminal or file of any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _one_line(error: BaseException) -> str:
    """The message on one line; it may quote a file's own text, so no escape sequence gets out."""
    return strip_control_characters(" ".join(str(error).split()))
