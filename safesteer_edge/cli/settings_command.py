"""`safesteer-edge settings`: look at the settings file, and change it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from safesteer_edge.cli.options import OK


def add_parser(subparsers: Any) -> None:
    """Register the command and its own commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "settings", help="what the chat uses unless told otherwise", description="The settings."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="every setting, with its value and meaning")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=run_show)
    path = commands.add_parser("path", help="where the file lies")
    path.set_defaults(run=run_path)
    change = commands.add_parser("set", help="change a setting")
    change.add_argument("key", metavar="KEY", help="as 'settings show' has it")
    change.add_argument("value", metavar="VALUE")
    change.set_defaults(run=run_set)
    unset = commands.add_parser("unset", help="bring a setting back to its default")
    unset.add_argument("key", metavar="KEY", help="as 'settings show' has it")
    unset.set_defaults(run=run_unset)


def run_show(options: argparse.Namespace) -> int:
    """Print all settings; a mark stands where one differs from its default."""
    from safesteer_edge.session.settings_file import read_settings, setting_value, value_to_text
    from safesteer_edge.session.settings_schema import all_settings

    settings = read_settings()
    if options.json:
        print(json.dumps({each.key: setting_value(settings, each.key) for each in all_settings()}))
        return OK
    rows = [
        (each.key, value_to_text(setting_value(settings, each.key)), each)
        for each in all_settings()
    ]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    for key, value, each in rows:
        mark = "*" if setting_value(settings, key) != each.default else " "
        print(f"{mark} {key.ljust(key_width)}  {value.ljust(value_width)}  {each.meaning}")
    return OK


def run_path(_options: argparse.Namespace) -> int:
    """Print the file's path and nothing else."""
    from safesteer_edge.session.settings_file import settings_path

    print(settings_path())
    return OK


def run_set(options: argparse.Namespace) -> int:
    """Change one setting. Raises SettingsError."""
    from safesteer_edge.session.settings_file import read_settings, with_setting, write_settings

    write_settings(with_setting(read_settings(), options.key, options.value))
    return OK


def run_unset(options: argparse.Namespace) -> int:
    """Bring one setting back to its default. Raises SettingsError."""
    from safesteer_edge.session.settings_file import read_settings, without_setting, write_settings

    write_settings(without_setting(read_settings(), options.key))
    return OK
