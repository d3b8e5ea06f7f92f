"""What was measured at the end of a run: overheads, and the guard on held-out requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safesteer_edge.errors import InputError

Json = dict[str, Any]
_BENCH_SETTINGS: Final = ("n_repeats", "n_prompts", "max_tokens")
_HELDOUT_PARTS: Final = ("max_tokens", "guard", "probe")


def read_overheads(path: Path) -> Json:
    """What the bench measured at the end of this run; {}: it was not asked for."""
    if not path.exists():
        return {}
    try:
        bench: Json = json.loads(path.read_text(encoding="utf-8"))
        return {
            "ratios": bench["ratios"],
            "settings": {name: bench["settings"][name] for name in _BENCH_SETTINGS},
            "n_threads": bench["model"]["n_threads"],
            "peak_memory_bytes": bench["peak_memory_bytes"],
            "passes_per_token": {
                f"{row['variant']}/{row['kind']}": row["passes_per_token"]
                for row in bench["variants"]
            },
            "tokens_per_second": {
                f"{row['variant']}/{row['kind']}": row["tokens_per_second"]
                for row in bench["variants"]
            },
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


def read_heldout(path: Path) -> Json:
    """What the guard does on the test split, as far as it was measured; {}: not asked for."""
    if not path.exists():
        return {}
    try:
        heldout: Json = json.loads(path.read_text(encoding="utf-8"))
        return {name: heldout[name] for name in _HELDOUT_PARTS if name in heldout}
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error
