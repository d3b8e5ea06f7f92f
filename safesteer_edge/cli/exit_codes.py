"""What the command line's exit codes mean."""

from __future__ import annotations

from typing import Final

OK: Final = 0
RUNTIME_ERROR: Final = 1
BAD_INPUT: Final = 2
REFUSED: Final = 4  # only where --fail-on-refusal asks for it
INTERRUPTED: Final = 130
