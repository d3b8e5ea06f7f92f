"""The steps of a turn as a file: one JSON object a line, as `ask --trace` writes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safesteer_edge.errors import InputError, SettingsError
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.tui.shown_turn import ShownTurn


def write_trace(turn: ShownTurn, argument: str) -> tuple[Path, int]:
    """Write the steps of a turn; returns file and number. argument: a file, or nothing."""
    if not turn.steps:
        raise InputError("the last answer has no steps here; regenerate it to have them")
    path = Path(argument or "safesteer-trace.jsonl").expanduser()
    try:
        with atomic_write(path, "w") as stream:
            for step in turn.steps:
                stream.write(json.dumps(asdict(step), ensure_ascii=False) + "\n")
    except OSError as error:
        raise SettingsError(
            f"cannot write {str(path)!r}: {error.strerror or error}; give a file in a folder "
            "that exists and is writable"
        ) from error
    return path, len(turn.steps)
