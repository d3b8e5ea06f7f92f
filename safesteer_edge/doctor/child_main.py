"""A child process of the diagnosis. Run as a file, never imported.

argv: the parent's sys.path as JSON, and the name of one task. The last line on stdout is the
reply: {"facts": {…}} or {"failure": {…}}.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def _reply(task: str) -> dict[str, Any]:
    from dataclasses import asdict

    from safesteer_edge.doctor.child_tasks import TASKS
    from safesteer_edge.errors import SafeSteerError

    try:
        return {"facts": asdict(TASKS[task]())}
    except SafeSteerError as error:
        return _failure("error", _one_line(error), is_ours=True)
    except ImportError as error:
        return _failure("missing module", f"{type(error).__name__}: {_one_line(error)}")
    except Exception as error:  # whatever it is, the parent reports it
        return _failure("error", f"{type(error).__name__}: {_one_line(error)}")


def _failure(cause: str, message: str, *, is_ours: bool = False) -> dict[str, Any]:
    return {"failure": {"cause": cause, "message": message, "is_ours": is_ours}}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    # This file's own folder goes: its modules are imported by their full names only.
    sys.path[:] = json.loads(sys.argv[1])
    print("\n" + json.dumps(_reply(sys.argv[2])), flush=True)
