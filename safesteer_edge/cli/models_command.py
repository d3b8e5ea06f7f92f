"""`safesteer-edge models`: which models there are; get them, add them, check them, remove them."""

from __future__ import annotations

import argparse
from typing import Any

from safesteer_edge.cli import models_fit, models_list, models_manage, models_pull


def add_parser(subparsers: Any) -> None:
    """Register the command and its own commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "models",
        help="list, pull, add and remove models",
        description="Which models there are; get them, add them, check them, remove them.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (models_list, models_pull, models_manage, models_fit):
        module.add_parsers(commands)
