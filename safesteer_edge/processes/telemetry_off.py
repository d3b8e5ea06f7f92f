"""The one way to onnxruntime: imported with its telemetry off.

Since 1.29 its builds for Linux and macOS write a device id and a queue of events below the user's
cache folder as soon as they are imported, and look up a host of Microsoft's some seconds later. Its
own `disable_telemetry_events` comes too late for either; a variable in the environment does not
(github.com/microsoft/onnxruntime, docs/Privacy.md).
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any, Final

_SWITCH: Final = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module, which takes 0.1 s and has no type stubs. Call it before what imports it itself.

    The variable stays set, for child processes. Warns where onnxruntime was imported before
    without it: then it only makes fewer events.
    """
    if "onnxruntime" in sys.modules and os.environ.get(_SWITCH) != "1":
        warnings.warn(
            f"onnxruntime was imported before {_SWITCH}=1 was set, so that it may have written to "
            "the cache folder and may look up a host of Microsoft's; set it before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    os.environ[_SWITCH] = "1"
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    onnxruntime.disable_telemetry_events()  # Windows' builds do not know the variable
    return onnxruntime
