"""Python's garbage collector, kept from stopping the chat while somebody types.

A frame that is painted makes some thousand objects that live until the next one, which the
collector takes for a reason to walk through all that there is, four times a second while an answer
streams: a tenth of a second each time (measured, 200,000 objects). So what was there at the start
is left out of its rounds, the full ones are rare, and the chat asks for one when nobody waits.
"""

from __future__ import annotations

import gc

_THRESHOLDS = (5_000, 10, 100)


def spare_pauses() -> None:
    """Let full rounds be rare in this process. What was imported lives as long as it does."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def collect_now() -> None:
    """A full round, where `spare_pauses` was called: some tens of milliseconds. Else nothing."""
    if gc.get_threshold() == _THRESHOLDS:
        gc.collect()
