"""What a run measures at its very end where it is asked for: the guard on the whole test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.bench_machine import measure_in_child
from safesteer_edge.evaluation.heldout import (
    effect_to_json,
    measure_guard_effects,
    measure_probe,
    n_probe_requests,
    requests_of_test_split,
)
from safesteer_edge.evaluation.running.eval_settings import HELDOUT, EvalSettings, Narrate
from safesteer_edge.evaluation.running.progress import Progress
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.finite_json import without_nan
from safesteer_edge.settings import SessionSettings

MAX_TOKENS: Final = 64  # as many as `measure guard` takes

_Measure = Callable[[SessionSettings, int | None], Any]


def measure_heldout(settings: EvalSettings, narrate: Narrate) -> None:
    """What `measure guard` and `measure probe` measure; each is kept if it was measured before."""
    if not settings.with_heldout:
        return
    path = settings.folder / HELDOUT
    session = replace(
        settings.session,
        guard="steer",
        rerank="lazy",
        max_tokens=MAX_TOKENS,
        sampling=replace(settings.session.sampling, temperature=0.0),
    )
    kept = _read(path)
    for name, (what, measure) in _PARTS.items():
        if name in kept:
            continue
        narrate(f"held out: {what}")
        kept[name] = measure_in_child(measure, session, settings.limit)
        kept["max_tokens"] = MAX_TOKENS
        with atomic_write(path, "w") as stream:
            json.dump(without_nan(kept), stream, ensure_ascii=False)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


def _measure_guard(session: SessionSettings, limit: int | None) -> list[dict[str, Any]]:
    requests = requests_of_test_split(limit)
    progress = Progress(len(requests), "held-out requests, with the guard and without")
    effects = measure_guard_effects(session, requests, progress=lambda _: progress.add())
    return [effect_to_json(effect) for effect in effects]


def _measure_probe(session: SessionSettings, limit: int | None) -> dict[str, Any]:
    requests = requests_of_test_split(limit)
    progress = Progress(n_probe_requests(requests), "held-out requests, for the probe")
    return measure_probe(session, requests, progress=lambda _: progress.add()).to_json()


_PARTS: Final[Mapping[str, tuple[str, _Measure]]] = {
    "guard": ("what the guard changes", _measure_guard),
    "probe": ("how well the probe separates", _measure_probe),
}
