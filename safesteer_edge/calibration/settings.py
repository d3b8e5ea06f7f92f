"""What a calibration is given: settings that nobody has to think about, and what must be there."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from safesteer_edge.calibration.assemble_bundle import REFUSAL_TEXT
from safesteer_edge.calibration.vector_fit import VectorSettings
from safesteer_edge.errors import RequestDataError, SettingsError
from safesteer_edge.formats.model_file import check_language_model, check_projector_fits
from safesteer_edge.harvest.answers import HarvestPlan
from safesteer_edge.harvest.cache import DEFAULT_LIMIT_BYTES, HarvestSettings
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.harvest.run import default_workers
from safesteer_edge.requests.pictures import ordinary_picture_requests
from safesteer_edge.requests.requests import (
    Label,
    Request,
    Split,
    load_requests,
    load_translated,
    replay_requests,
)
from safesteer_edge.session.choice import choose_model, require_projector
from safesteer_edge.session.settings import SessionSettings

# Five folds need some of each kind; figures worth having need far more.
MIN_REQUESTS: Final = 10
NEEDED_LABELS: Final[tuple[Label, ...]] = ("harmful", "ordinary")
_LOOSEST: Final = 0.5
# Shares of the depth: one block, three, and nine joined. Early blocks read words and the last ones
# choose the next token; what an answer means lies between: of SmolLM2's 30 blocks, 18 was the best
# single one.
_DEPTHS: Final = (
    (0.6,),
    (0.47, 0.6, 0.8),
    (0.4, 0.47, 0.53, 0.6, 0.67, 0.73, 0.8, 0.87, 0.93),
)


# -- how much is read and tried --------------------------------------------------------------------

EffortName = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True, slots=True)
class Effort:
    """plan: what is harvested; a larger one finds in the cache what a smaller one left there.

    regularisations: C to try. max_features: of joined layers, None: any; three of Qwen2.5-1.5B told
    its prompts apart as well as nine did. only_linear: no other form of probe, and the largest set
    of layers alone. max_rows: of a fit. is_nested: the choice among probes is estimated too.
    not_tried: in words, for the report.
    """

    name: EffortName
    plan: HarvestPlan
    regularisations: tuple[float, ...] = (3e-3, 1e-2)
    max_features: int | None = None
    only_linear: bool = False
    max_rows: int | None = None
    is_nested: bool = True
    tries_vector: bool = True
    not_tried: tuple[str, ...] = ()


# An opening's first four tokens teach most. One opening for each of many requests, rather than
# several for a few: what is read costs little, and what is asked differs more.
_BATCHES: Final = HarvestPlan(n_own_tokens=32, n_forced_tokens=4, n_openings=1, in_batches=True)
EFFORTS: Final[dict[EffortName, Effort]] = {
    "quick": Effort(
        "quick",
        replace(
            _BATCHES,
            n_answered=90,
            n_answered_borderline=90,
            n_answered_benign=210,
            n_read=700,
            n_read_borderline=600,
            n_read_ordinary=500,
            n_read_translated=16,
            draws=False,
        ),
        max_features=6_144,
        only_linear=True,
        max_rows=6_000,
        is_nested=False,
        tries_vector=False,
        not_tried=(
            "the rest of the requests",
            "requests in pictures, and the alignment vector",
            "other forms of probe and smaller sets of layers",
            "an estimate of the choice among probes",
        ),
    ),
    "standard": Effort(
        "standard",
        replace(
            _BATCHES,
            n_answered=200,
            n_answered_borderline=300,
            n_answered_benign=420,
            n_read_translated=60,
        ),
        only_linear=True,
        max_features=8_192,
        max_rows=12_000,
        is_nested=False,
        not_tried=(
            "other forms of probe and smaller sets of layers",
            "an estimate of the choice among probes",
        ),
    ),
    "thorough": Effort(
        "thorough",
        replace(_BATCHES, n_answered=400, n_answered_borderline=600, n_answered_benign=800),
    ),
}


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """layer_sets: sets of layers to try, each joined in its order. regularisations: C to try.

    harvest: its `tail_layers` are those of all sets. replayed: what the result is measured on.
    """

    harvest: HarvestSettings
    layer_sets: tuple[tuple[int, ...], ...]
    regularisations: tuple[float, ...]
    targets: FalseAlarmTargets
    refusal_text: str
    name: str
    vector: VectorSettings = field(default_factory=VectorSettings)
    replayed: tuple[Request, ...] = ()
    effort: Effort = EFFORTS["thorough"]


def layer_sets_for(n_layer: int) -> tuple[tuple[int, ...], ...]:
    """Sets of block outputs to try, from one block to nine joined; no set twice.

    Leaves the last block out: its output is before the final norm, and the cheap route to hidden
    states does not reach it.
    """
    last = max(0, n_layer - 2)
    sets = [
        tuple(sorted({min(last, round(share * n_layer)) for share in shares})) for shares in _DEPTHS
    ]
    return tuple(dict.fromkeys(sets))


def default_settings(
    session: SessionSettings,
    *,
    name: str | None = None,
    hears: bool = False,
    cache_limit_bytes: int = DEFAULT_LIMIT_BYTES,
    n_workers: int | None = None,
    targets: FalseAlarmTargets | None = None,
    effort: EffortName = "quick",
) -> CalibrationSettings:
    """What to try on this model. name: of the bundle, None: that of the model's file.

    n_workers: processes that harvest at once; None: as many as serve a model of this size.
    Raises SettingsError or ModelFileError if there is no such model.
    """
    info = check_language_model(choose_model(session.model).path)
    targets = targets or FalseAlarmTargets()
    chosen = EFFORTS[effort]
    if n_workers is None:
        n_workers = default_workers(session, info.size_bytes)
    layer_sets = layer_sets_for(info.n_layer)
    tail_layers = tuple(sorted({layer for layers in layer_sets for layer in layers}))
    if chosen.only_linear:
        n_most = (chosen.max_features or sys.maxsize) // info.n_embd
        layer_sets = (_thinned(max(layer_sets, key=len), max(1, n_most)),)
    return CalibrationSettings(
        harvest=HarvestSettings(
            session=session,
            plan=_with_enough(chosen.plan, targets),
            tail_layers=tail_layers,
            hears=hears,
            limit_bytes=cache_limit_bytes,
            n_workers=n_workers,
        ),
        layer_sets=layer_sets,
        regularisations=chosen.regularisations,
        targets=targets,
        refusal_text=REFUSAL_TEXT,
        name=name or info.path.stem,
        replayed=replay_requests(),
        effort=chosen,
    )


def scaled(settings: CalibrationSettings, share: float) -> CalibrationSettings:
    """The same, reading this share of a quick effort's requests; of ordinary ones as many as limits
    need.

    What a smaller share reads is part of what a larger one does.
    """
    plan = settings.effort.plan
    given = {name: round(share * getattr(plan, name)) for name in _SCALED}
    plan = _with_enough(replace(plan, **given), settings.targets)
    return replace(settings, harvest=replace(settings.harvest, plan=plan))


_SCALED: Final = (
    "n_answered",
    "n_answered_borderline",
    "n_answered_benign",
    "n_read",
    "n_read_borderline",
    "n_read_ordinary",
)


def _with_enough(plan: HarvestPlan, targets: FalseAlarmTargets) -> HarvestPlan:
    """The plan with so many ordinary requests that their false alarms can be told."""
    n = n_needed(smallest_ordinary(targets))
    n_read = plan.n_read_ordinary and max(plan.n_read_ordinary, n)
    return replace(plan, n_answered_benign=max(plan.n_answered_benign, n), n_read_ordinary=n_read)


def _thinned(layers: tuple[int, ...], n_most: int) -> tuple[int, ...]:
    """At most so many of them, evenly spread."""
    n = min(n_most, len(layers))
    return tuple(layers[(2 * at + 1) * len(layers) // (2 * n)] for at in range(n))


def package_requests() -> tuple[Request, ...]:
    """The package's own requests that may be calibrated on, in all their languages."""
    splits: tuple[Split, ...] = ("train", "calibration")
    return (*load_requests(splits=splits), *load_translated(splits=splits))


# -- what keeps a calibration from succeeding, found before hours are spent ------------------------


def targets_for(share: float | None) -> FalseAlarmTargets:
    """The targets at which the guard may act on this share of ordinary answers; None: the usual.

    Where it is looser than the usual share of borderline answers, those get it too.
    Raises SettingsError.
    """
    usual = FalseAlarmTargets()
    if share is None:
        return usual
    if not 0 < share <= _LOOSEST:
        raise SettingsError(
            f"--false-alarms is {share:g}; expected a share above 0 and at most {_LOOSEST}"
        )
    return replace(
        usual,
        touched=share,
        ordinary_refused=share / 2,
        borderline_refused=max(share, usual.borderline_refused),
        borderline_touched=max(share, usual.borderline_touched),
    )


def n_needed(share: float) -> int:
    """The fewest answers that a limit can be told from that this share of fresh ones exceeds."""
    return math.ceil(round((1 - share) / share, 6))


def check_requests(
    requests: Sequence[Request], source: str, targets: FalseAlarmTargets
) -> tuple[str, ...]:
    """Check that there is enough to learn from; return what is worth a warning, one line each.

    source: what messages call the requests. Raises RequestDataError.
    """
    counts = Counter(request.label for request in requests)
    for label in NEEDED_LABELS:
        if not counts[label]:
            raise RequestDataError(
                f"{source} has no {label} ones outside the test split; a probe needs both harmful "
                "and ordinary requests"
            )
        if counts[label] < MIN_REQUESTS:
            raise RequestDataError(
                f"{source} has {counts[label]} {label} ones outside the test split; give at least "
                f"{MIN_REQUESTS}, better hundreds"
            )
    _check_told(source, "ordinary", counts["ordinary"], smallest_ordinary(targets), n_ways=2)
    if not counts["borderline"]:
        return (f"{source} has no borderline ones; expect false alarms on such requests",)
    smallest = min(targets.borderline_touched, targets.borderline_refused)
    _check_told(source, "borderline", counts["borderline"], smallest)
    return ()


def smallest_ordinary(targets: FalseAlarmTargets) -> float:
    """The smallest share of ordinary answers that is to be told."""
    return min(targets.touched, targets.ordinary_refused)


def _check_told(source: str, label: Label, n: int, share: float, *, n_ways: int = 1) -> None:
    """With fewer, no limit keeps to the share but one that nothing exceeds: it would never act.

    n_ways: among which what is allowed is dealt out.
    """
    if n < n_needed(share):
        least = math.ceil(100 * n_ways / (n + 1)) / 100
        or_none = ", or none" if label == "borderline" else ""
        loosen = f", or allow more false alarms with --false-alarms {least:g}"
        raise RequestDataError(
            f"{source} has {n} {label} ones outside the test split; a guard that may act on "
            f"{100 * n_ways * share:g} % of such answers needs {n_needed(share)} of them: give more"
            f"{or_none}{loosen if least <= _LOOSEST else ''}"
        )


def check_media(session: SessionSettings, requests: Sequence[Request], *, hears: bool) -> None:
    """Check that the model takes the media that are asked for. Loads no weights.

    hears: recordings are to be played. Raises MediaError, ModelFileError, SettingsError.
    """
    has_images = any(request.image for request in requests)
    if hears and not any(request.audio for request in requests):
        raise SettingsError(
            "--audio was given and no request has a recording; add 'audio' to rows of --data"
        )
    sees = has_images or (session.mmproj is not None and not hears)
    require_projector(session, images=sees, sounds=hears)


def with_pictures(session: SessionSettings, requests: Sequence[Request]) -> tuple[Request, ...]:
    """The requests, and where the model sees, ordinary questions about pictures as well."""
    choice = choose_model(session.model)
    mmproj = session.mmproj or choice.mmproj
    if mmproj is None:
        return tuple(requests)
    projector = check_projector_fits(mmproj, check_language_model(choice.path))
    return (*requests, *ordinary_picture_requests()) if projector.has_vision else tuple(requests)
