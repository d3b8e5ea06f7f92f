"""What a harvest is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safesteer_edge.calibration.harvest import HarvestPlan
from safesteer_edge.calibration.harvest_cache import DEFAULT_LIMIT_BYTES
from safesteer_edge.settings import SessionSettings


@dataclass(frozen=True, slots=True)
class HarvestSettings:
    """session: unguarded, with the projector that is to be used. plan: lengths of answers.

    tail_layers: layers that a probe may read at late positions. hears: recordings are played.
    cache: None is the user's. n_workers: processes at once, on the CPU.
    """

    session: SessionSettings
    plan: HarvestPlan
    tail_layers: tuple[int, ...]
    hears: bool = False
    cache: Path | None = None
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    n_workers: int = 1
