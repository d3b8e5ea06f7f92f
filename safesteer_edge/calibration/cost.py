"""What a calibration took: seconds, and the most memory at once."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CostMeter:
    """Started when it is made."""

    started_s: float = field(default_factory=time.monotonic)

    def to_json(self) -> dict[str, float | None]:
        """{"elapsed_s", "peak_memory_mib"}; the latter None where the system does not say."""
        return {
            "elapsed_s": round(time.monotonic() - self.started_s, 1),
            "peak_memory_mib": _peak_memory_mib(),
        }


def _peak_memory_mib() -> float | None:
    """Of this process since it began."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(peak * unit / (1 << 20), 1)
