"""The settings of a calibration that nobody has to think about, for a model of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from safesteer_edge.calibration.make_bundle import CalibrationSettings
from safesteer_edge.calibration.preflight import n_needed, smallest_ordinary
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.harvest.answers import HarvestPlan
from safesteer_edge.harvest.cache import DEFAULT_LIMIT_BYTES
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.workers import default_workers
from safesteer_edge.requests.requests import replay_requests
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.settings import SessionSettings

# -- which layers a calibration tries, for a model of any depth ------------------------------------

# Shares of the depth. Early blocks read words and the last ones choose the next token; what an
# answer means lies between: of SmolLM2's 30 blocks, 18 was the best single one.
_MIDDLE = (0.6,)
_THREE = (0.47, 0.6, 0.8)
_MANY = (0.4, 0.47, 0.53, 0.6, 0.67, 0.73, 0.8, 0.87, 0.93)


def layer_sets_for(n_layer: int) -> tuple[tuple[int, ...], ...]:
    """Sets of block outputs to try, from one block to nine joined; no set twice.

    Leaves the last block out: its output is before the final norm, and the cheap route to hidden
    states does not reach it.
    """
    sets = [_layers(shares, n_layer) for shares in (_MIDDLE, _THREE, _MANY)]
    return tuple(dict.fromkeys(sets))


def _layers(shares: tuple[float, ...], n_layer: int) -> tuple[int, ...]:
    last = max(0, n_layer - 2)
    return tuple(sorted({min(last, round(share * n_layer)) for share in shares}))


REFUSAL_TEXT: Final = (
    "I can't help with that, because it could hurt someone. I'm glad to help another way."
)


def default_settings(
    session: SessionSettings,
    *,
    name: str | None = None,
    hears: bool = False,
    cache_limit_bytes: int = DEFAULT_LIMIT_BYTES,
    n_workers: int | None = None,
    targets: FalseAlarmTargets | None = None,
) -> CalibrationSettings:
    """What to try on this model. name: of the bundle, None: that of the model's file.

    n_workers: processes that harvest at once; None: as many as serve a model of this size.
    Raises SettingsError or ModelFileError if there is no such model.
    """
    info = check_language_model(choose_model(session.model).path)
    targets = targets or FalseAlarmTargets()
    plan, n_benign = HarvestPlan(), n_needed(smallest_ordinary(targets))
    if n_workers is None:
        n_workers = default_workers(session, info.size_bytes)
    return CalibrationSettings(
        session=replace(session, guard="off"),
        layer_sets=layer_sets_for(info.n_layer),
        regularisations=(3e-3, 1e-2),
        plan=replace(plan, n_answered_benign=max(plan.n_answered_benign, n_benign)),
        targets=targets,
        refusal_text=REFUSAL_TEXT,
        name=name or info.path.stem,
        hears=hears,
        cache_limit_bytes=cache_limit_bytes,
        n_workers=n_workers,
        replayed=replay_requests(),
    )
