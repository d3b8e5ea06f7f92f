"""Which models fit into this machine's memory, as `models list` says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class ModelFit:
    """needs_bytes: None if nobody can tell. fits: gpu, part, yes, tight, no, or ?"""

    needs_bytes: int | None
    fits: str


def model_fits() -> Mapping[str, ModelFit]:
    """By the models' names; empty if it cannot be found out. Takes a second or two.

    In a process of its own: it asks native code for GPUs, which may print, or die.
    """
    command = [sys.executable, "-m", "safesteer_edge", "models", "list", "--json"]
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT_S, check=True
        )
        models = json.loads(said.stdout)["models"]
        return {each["name"]: ModelFit(each["needs_bytes"], each["fits"]) for each in models}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return {}
