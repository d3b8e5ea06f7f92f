"""`safesteer-edge convert`: probes, vectors and guard bundles made elsewhere."""

from __future__ import annotations

import argparse
from typing import Any

from safesteer_edge.cli import convert_bundle_command, convert_probe_command, convert_vector_command

_COMMANDS = (convert_probe_command, convert_vector_command, convert_bundle_command)


def add_parser(subparsers: Any) -> None:
    """Register the command and its own commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="bring probes and vectors made elsewhere",
        description="Convert probes and vectors made elsewhere, and put them into a guard bundle.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
