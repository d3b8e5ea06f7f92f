"""What the outside baselines need: made and chosen on the train and calibration splits alone.

The refusal direction is `refusal_direction`'s; the limit of the response-level check is the one
that told harmful requests' answers from others best on the calibration split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.requests_data import Label, Request, load_requests
from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.refusal_direction import (
    Directions,
    RefusalDirection,
    find_direction,
    make_sources,
)
from safesteer_edge.evaluation.refusal_rules import classify_answer
from safesteer_edge.evaluation.suites.case import evenly
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.finite_json import load_finite
from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.guard.risk import is_score
from safesteer_edge.runtime import open_runtime
from safesteer_edge.session import Session
from safesteer_edge.settings import SessionSettings

N_STEERED: Final = 18  # harmful requests, and as many others, answered at each strength
N_CHECKED: Final = 21  # harmful requests, and as many others, whose answers set the limit
N_CHOOSING_TOKENS: Final = 24
_OTHERS: Final[tuple[Label, ...]] = ("harmless", "borderline", "ordinary")
_FILE: Final = "baselines"


@dataclass(frozen=True, slots=True, eq=False)
class FittedBaselines:
    """directions: float32 (n_layer, n_embd), as `RefusalDirection` has them; zeros: none was made.

    direction: what it was chosen from, JSON-ready; none: {}. response_gain: on the calibration
    split, the share of harmful requests that the limit withholds less that of others; the largest.
    """

    directions: NDArray[np.float32]
    direction: Mapping[str, Any]
    response_limit: float
    response_gain: float

    def facts(self) -> dict[str, Any]:
        """What was chosen, for a report."""
        return {
            "direction": dict(self.direction),
            "response_limit": self.response_limit,
            "response_gain": self.response_gain,
            "n_checked": 2 * N_CHECKED,
            "n_choosing_tokens": N_CHOOSING_TOKENS,
        }


NO_BASELINES: Final = FittedBaselines(np.zeros((1, 1), dtype=np.float32), {}, 1.0, 0.0)


def fit_baselines(
    settings: SessionSettings,
    *,
    with_direction: bool = True,
    with_limit: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedBaselines:
    """Make and choose both. Some five minutes for the default model on two cores.

    settings: greedy decoding is used whatever they say. Raises ModelFileError, BundleError, …
    """
    settings = replace(
        settings,
        max_tokens=N_CHOOSING_TOKENS,
        sampling=replace(settings.sampling, temperature=0.0),
    )
    fitted = NO_BASELINES
    if with_direction:
        found = _direction(settings, progress)
        fitted = replace(fitted, directions=found.directions, direction=found.facts())
    if with_limit:
        progress("response check: choosing its limit")
        fitted = _with_limit(fitted, settings)
    return fitted


def save_baselines(fitted: FittedBaselines, folder: Path) -> None:
    """Keep them beside a run, so that going on with it uses the same."""
    with atomic_write(folder / f"{_FILE}.npz") as stream:
        np.savez(stream, directions=fitted.directions)
    values = {name: value for name, value in asdict(fitted).items() if name != "directions"}
    with atomic_write(folder / f"{_FILE}.json", "w") as stream:
        json.dump(values, stream)


def load_baselines(folder: Path) -> FittedBaselines | None:
    """Those that `save_baselines` kept; None: there are none. Raises InputError if damaged."""
    path = folder / f"{_FILE}.json"
    if not path.exists():
        return None
    try:
        values = cast("dict[str, Any]", load_finite(path.read_text(encoding="utf-8")))
        with np.load(folder / f"{_FILE}.npz", allow_pickle=False) as arrays:
            directions = arrays["directions"].astype(np.float32)
        if not is_score(values["response_limit"]) or not np.isfinite(directions).all():
            raise ValueError("its numbers are out of range")
        return FittedBaselines(directions=directions, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot use the baselines in {str(folder)!r}: {error}; remove {_FILE}.json there"
        ) from error


def _direction(settings: SessionSettings, progress: Callable[[str], None]) -> RefusalDirection:
    off = replace(settings, guard="off")
    progress("refusal direction: states of prompts and answers")
    runtime = open_runtime(off)
    n_layer = runtime.model.n_layer
    runtime.close()
    runtime = open_runtime(off, layers=range(n_layer))
    try:
        sources = make_sources(runtime)
    finally:
        runtime.close()
    runtime = open_runtime(off)
    session = Session(runtime, off)
    harmful, others = _choosing_requests(N_STEERED)
    runtime.fixed_vector_steers_prompt = True

    def count(vector: Directions | None) -> tuple[int, int]:
        runtime.fixed_vector = vector
        labels = [
            [classify_answer(_ask(session, request).text) for request in requests]
            for requests in (harmful, others)
        ]
        return labels[0].count("refused"), sum(label != "complied" for label in labels[1])

    try:
        return find_direction(runtime, sources, harmful, others, count, progress)
    finally:
        session.close()


def _with_limit(fitted: FittedBaselines, settings: SessionSettings) -> FittedBaselines:
    watching = replace(settings, guard="monitor")
    runtime = open_runtime(watching)
    session = Session(runtime, watching)
    try:
        scores = [
            np.array([_ask(session, r).guard.mean_score or 0.0 for r in requests])
            for requests in _choosing_requests(N_CHECKED)
        ]
    finally:
        session.close()
    harmful, others = scores
    limits = np.unique(np.concatenate(scores))
    gains = [float((harmful > x).mean() - (others > x).mean()) for x in limits]
    i = int(np.argmax(gains))
    return replace(fitted, response_limit=float(limits[i]), response_gain=gains[i])


def _choosing_requests(n: int) -> tuple[list[Request], list[Request]]:
    """N harmful ones, and about as many others of every kind."""
    harmful = load_requests(splits=("calibration",), labels=("harmful",))
    others = [
        request
        for label in _OTHERS
        for request in evenly(
            load_requests(splits=("calibration",), labels=(label,)), -(-n // len(_OTHERS))
        )
    ]
    return evenly(harmful, n), others


def _ask(session: Session, request: Request) -> TurnEnded:
    session.reset()
    *_, ended = session.ask(request.text)
    if not isinstance(ended, TurnEnded):
        raise TypeError(f"a turn ended with {type(ended).__name__}")
    return ended
