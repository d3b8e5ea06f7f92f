"""The settings of a calibration that nobody has to think about, for a model of any size."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from safesteer_edge.calibration.fixed_requests import replay_requests
from safesteer_edge.calibration.harvest import HarvestPlan
from safesteer_edge.calibration.harvest_cache import DEFAULT_LIMIT_BYTES
from safesteer_edge.calibration.harvest_workers import default_workers
from safesteer_edge.calibration.layer_sets import layer_sets_for
from safesteer_edge.calibration.make_bundle import CalibrationSettings
from safesteer_edge.calibration.preflight import n_needed, smallest_ordinary
from safesteer_edge.calibration.targets import FalseAlarmTargets
from safesteer_edge.formats.model_file import check_language_model
from safesteer_edge.model_choice import choose_model
from safesteer_edge.settings import SessionSettings

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
