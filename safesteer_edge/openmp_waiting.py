"""How long the threads that decode wait actively for each other.

GNU's OpenMP lets them spin for a millisecond and more at every operation of the graph. Where other
programs want the cores too, a thread then spins while the one that it waits for has no core: on two
busy cores the default model wrote 1 to 2 tokens/s, and 3 to 7 with the short spin that GNU's OpenMP
has itself where it starts more threads than there are cores. On idle cores both gave the same, 105
and 106 tokens/s. Not spinning at all (`OMP_WAIT_POLICY=PASSIVE`) gave 7 to 16, but halved the idle
speed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

_SPIN_COUNT: Final = "1000"
_CHOSEN_BY_USERS: Final = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Choose a short spin for the processes of this environment, unless the person chose.

    It counts for what loads OpenMP afterwards.
    """
    if not any(name in environment for name in _CHOSEN_BY_USERS):
        environment["GOMP_SPINCOUNT"] = _SPIN_COUNT
