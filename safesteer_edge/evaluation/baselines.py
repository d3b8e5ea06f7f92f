"""What the outside baselines need: made and chosen on the train and calibration splits alone.

The refusal direction is the difference of the mean states of harmful and harmless prompts (train
split) at each block's output, after Arditi et al. (arXiv 2406.11717); it is added to blocks in the
middle of the model at all times, at the strength that told the two best apart on the calibration
split. The limit of the response-level check is chosen on the same requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.requests_data import Label, Request, load_requests
from safesteer_edge.engine.prompt_items import TokenRun
from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.refusal_rules import is_refusal
from safesteer_edge.evaluation.suites.case import evenly
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.prompting import question_items
from safesteer_edge.runtime import Runtime, last_state_of, open_runtime
from safesteer_edge.session import Session
from safesteer_edge.settings import SessionSettings

N_TRAIN: Final = 64  # of each label
N_CHOOSING: Final = 20  # of harmful ones, and of others
N_CHOOSING_TOKENS: Final = 24
SCALES: Final = (0.5, 1.0, 2.0, 4.0)
_FIRST_SHARE, _LAST_SHARE = 0.4, 0.7  # of the depth; the first block cannot be steered
_OTHERS: Final[tuple[Label, ...]] = ("harmless", "borderline", "ordinary")
_FILE: Final = "baselines"


@dataclass(frozen=True, slots=True, eq=False)
class FittedBaselines:
    """directions: float32 (n_layer, n_embd), zero outside `layers`, at scale 1.

    *_gain: on the calibration split, the share of harmful requests that were stopped less that of
    others; what was chosen has the largest.
    """

    directions: NDArray[np.float32]
    direction_scale: float
    direction_gain: float
    response_limit: float
    response_gain: float
    layers: tuple[int, int]

    def facts(self) -> dict[str, Any]:
        """What was chosen, for a report."""
        values = {name: getattr(self, name) for name in _FACTS}
        return {**values, "scales_tried": list(SCALES), "n_choosing": 2 * N_CHOOSING}


_FACTS: Final = (
    "direction_scale",
    "direction_gain",
    "response_limit",
    "response_gain",
    "layers",
)
NO_BASELINES: Final = FittedBaselines(
    np.zeros((1, 1), dtype=np.float32), 0.0, 0.0, 1.0, 0.0, (0, 0)
)


def fit_baselines(
    settings: SessionSettings,
    *,
    with_direction: bool = True,
    with_limit: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> FittedBaselines:
    """Make and choose both. About two minutes for the default model on two cores.

    settings: greedy decoding is used whatever they say. Raises ModelFileError, BundleError, …
    """
    settings = replace(
        settings,
        max_tokens=N_CHOOSING_TOKENS,
        sampling=replace(settings.sampling, temperature=0.0),
    )
    fitted = NO_BASELINES
    if with_direction:
        progress("refusal direction: states of prompts")
        directions, layers = _directions(settings)
        fitted = replace(fitted, directions=directions, layers=layers)
        progress("refusal direction: choosing its strength")
        fitted = _with_scale(fitted, settings)
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
        values = json.loads(path.read_text(encoding="utf-8"))
        with np.load(folder / f"{_FILE}.npz", allow_pickle=False) as arrays:
            directions = arrays["directions"].astype(np.float32)
        first, last = values.pop("layers")
        return FittedBaselines(directions=directions, layers=(int(first), int(last)), **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot use the baselines in {str(folder)!r}: {error}; remove {_FILE}.json there"
        ) from error


def _directions(settings: SessionSettings) -> tuple[NDArray[np.float32], tuple[int, int]]:
    off = replace(settings, guard="off")
    runtime = open_runtime(off)
    n_layer, n_embd = runtime.model.n_layer, runtime.model.n_embd
    runtime.close()
    runtime = open_runtime(off, layers=range(n_layer))
    try:
        means = [
            np.mean(_prompt_states(runtime, label), axis=0, dtype=np.float64)
            for label in ("harmful", "harmless")
        ]
    finally:
        runtime.close()
    difference = (means[0] - means[1]).reshape(n_layer, n_embd).astype(np.float32)
    first = max(1, round(_FIRST_SHARE * n_layer))
    last = max(first, min(n_layer - 1, round(_LAST_SHARE * n_layer)))
    directions = np.zeros_like(difference)
    directions[first : last + 1] = difference[first : last + 1]
    return directions, (first, last)


def _prompt_states(runtime: Runtime, label: Label) -> NDArray[np.float32]:
    """float32 (n_prompts, n_features): at the last token of each prompt."""
    requests = evenly(load_requests(splits=("train",), labels=(label,)), N_TRAIN)
    prompts = [
        question_items(request.text, template=runtime.template, model=runtime.model)
        for request in requests
    ]
    token_ids = [
        [token_id for item in items if isinstance(item, TokenRun) for token_id in item.token_ids]
        for items in prompts
    ]
    return np.stack([last_state_of(runtime.engine, runtime.model, ids) for ids in token_ids])


def _with_scale(fitted: FittedBaselines, settings: SessionSettings) -> FittedBaselines:
    off = replace(settings, guard="off")
    runtime = open_runtime(off)
    session = Session(runtime, off)
    harmful, others = _choosing_requests()
    try:
        best = replace(fitted, direction_scale=SCALES[0], direction_gain=-1.0)
        for scale in SCALES:
            runtime.fixed_vector = fitted.directions * np.float32(scale)
            gain = _share_refused(session, harmful) - _share_refused(session, others)
            if gain > best.direction_gain:
                best = replace(fitted, direction_scale=scale, direction_gain=gain)
    finally:
        session.close()
    return best


def _with_limit(fitted: FittedBaselines, settings: SessionSettings) -> FittedBaselines:
    watching = replace(settings, guard="monitor")
    runtime = open_runtime(watching)
    session = Session(runtime, watching)
    try:
        scores = [
            np.array([_ask(session, r).guard.mean_score or 0.0 for r in requests])
            for requests in _choosing_requests()
        ]
    finally:
        session.close()
    harmful, others = scores
    limits = np.unique(np.concatenate(scores))
    gains = [float((harmful > x).mean() - (others > x).mean()) for x in limits]
    i = int(np.argmax(gains))
    return replace(fitted, response_limit=float(limits[i]), response_gain=gains[i])


def _choosing_requests() -> tuple[list[Request], list[Request]]:
    harmful = load_requests(splits=("calibration",), labels=("harmful",))
    others = [
        request
        for label in _OTHERS
        for request in evenly(
            load_requests(splits=("calibration",), labels=(label,)), -(-N_CHOOSING // len(_OTHERS))
        )
    ]
    return evenly(harmful, N_CHOOSING), others


def _share_refused(session: Session, requests: Sequence[Request]) -> float:
    return float(np.mean([is_refusal(_ask(session, request).text) for request in requests]))


def _ask(session: Session, request: Request) -> TurnEnded:
    session.reset()
    *_, ended = session.ask(request.text)
    if not isinstance(ended, TurnEnded):
        raise TypeError(f"a turn ended with {type(ended).__name__}")
    return ended
