"""A harvest over many requests: what is in the cache already, the rest through the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from safesteer_edge.calibration.carriers import DRAWN_CARRIERS, Carrier
from safesteer_edge.calibration.harvest import AnswerKind, HarvestedAnswer, Harvester
from safesteer_edge.calibration.harvest_cache import HarvestCache, StateShape
from safesteer_edge.calibration.harvest_settings import HarvestSettings
from safesteer_edge.calibration.harvest_units import HarvestUnit, layers_within, units_of
from safesteer_edge.calibration.harvest_workers import Share, run_side_by_side
from safesteer_edge.calibration.planned_requests import planned_requests
from safesteer_edge.calibration.requests_data import Request
from safesteer_edge.errors import MediaError
from safesteer_edge.runtime import Runtime, open_runtime
from safesteer_edge.usable_cores import n_usable_cores

Progress = Callable[[str, int, int], None]  # what, n_done, n_total


@dataclass(frozen=True, slots=True)
class Harvest:
    """What was harvested; the states are read from the disk, layer by layer."""

    cache: HarvestCache
    shape: StateShape
    units: tuple[HarvestUnit, ...]

    def without_drawn(self) -> Harvest:
        """The same without what was drawn; the user's own, ordinary and unrelated pictures stay."""
        kept = tuple(unit for unit in self.units if unit.carrier not in DRAWN_CARRIERS)
        return replace(self, units=kept)

    def answers(
        self,
        layers: Sequence[int],
        *,
        carriers: Collection[Carrier] | None = None,
        kinds: Collection[AnswerKind] | None = None,
        n_rows: int | None = None,
        wanted: Callable[[Request], bool] = lambda _: True,
    ) -> list[HarvestedAnswer]:
        """Answers with the states of these layers, joined; None: of all carriers, kinds, rows.

        Where a layer is none of `shape.tail_layers`, states end at answer position 16.
        """
        return [
            answer
            for unit in self.units
            if (carriers is None or unit.carrier in carriers) and wanted(unit.request)
            for answer in self.cache.get(
                unit.key, unit.request, unit.carrier, layers, n_rows=n_rows
            )
            if kinds is None or answer.kind in kinds
        ]

    def prompts(self, carriers: Collection[Carrier]) -> list[tuple[Request, Carrier]]:
        """What was answered in these carriers. A text that no font can draw has no answers."""
        answers = self.answers(self.shape.layers[:1], carriers=carriers, kinds=("own",), n_rows=1)
        return [(answer.request, answer.carrier) for answer in answers]


def harvest(settings: HarvestSettings, requests: Sequence[Request], progress: Progress) -> Harvest:
    """Answers to all requests, in every carrier that the model takes; goes on where it was.

    Raises SettingsError where the disk or the cache's limit leave no room, before the model runs;
    CacheError where it fails on the way; ModelFileError, MediaError, EngineError.
    """
    info, planned = planned_requests(settings, requests)
    shape = StateShape(layers_within(settings, info, planned), settings.tail_layers, info.n_embd)
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    runtime = open_runtime(settings.session, layers=shape.layers)
    try:
        units = units_of(settings, planned, runtime, shape)
        missing = [unit for unit in units if not cache.has(unit.key)]
        cache.make_room(
            sum(unit.planned.n_bytes_at_most(settings.plan, shape) for unit in missing),
            keep=[unit.key for unit in units],
        )
        is_alone = settings.n_workers == 1 or runtime.plan.n_gpu_layers > 0 or not missing
        if is_alone:
            _count(_harvested(runtime, settings, shape, missing), missing, units, progress)
    finally:
        runtime.close()
    if not is_alone:
        shares = _shares(settings, shape, missing)
        _count(run_side_by_side(shares), missing, units, progress)
    return Harvest(cache, shape, units)


def _count(
    done: Iterator[None],
    missing: Sequence[HarvestUnit],
    units: Sequence[HarvestUnit],
    progress: Progress,
) -> None:
    n_before = len(units) - len(missing)
    progress("harvesting answers", n_before, len(units))
    for n_done, _ in enumerate(done, start=n_before + 1):
        progress("harvesting answers", n_done, len(units))


def _shares(
    settings: HarvestSettings, shape: StateShape, units: Sequence[HarvestUnit]
) -> list[Share]:
    """The units, dealt out to workers that share the cores."""
    n_threads = settings.session.n_threads or n_usable_cores()
    session = replace(settings.session, n_threads=max(1, n_threads // settings.n_workers))
    one = replace(settings, session=session)
    n_workers = min(settings.n_workers, len(units))
    return [
        functools.partial(_harvest_share, one, shape, units[at::n_workers])
        for at in range(n_workers)
    ]


def _harvest_share(
    settings: HarvestSettings, shape: StateShape, units: Sequence[HarvestUnit]
) -> Iterator[None]:
    runtime = open_runtime(settings.session, layers=shape.layers)
    try:
        yield from _harvested(runtime, settings, shape, units)
    finally:
        runtime.close()


def _harvested(
    runtime: Runtime,
    settings: HarvestSettings,
    shape: StateShape,
    units: Sequence[HarvestUnit],
) -> Iterator[None]:
    """Answers to each unit into the cache, one after the other."""
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    harvester = Harvester(runtime, settings.plan)
    for unit in units:
        cache.put(unit.key, _answers(harvester, unit), shape)
        yield


def inner_layers(n_layer: int) -> tuple[int, ...]:
    """All block outputs but the last, which the cheap route to hidden states does not reach."""
    return tuple(range(max(1, n_layer - 1)))


def _answers(harvester: Harvester, unit: HarvestUnit) -> list[HarvestedAnswer]:
    try:
        return harvester.answers(unit.request, unit.carrier, is_answered=unit.planned.is_answered)
    except MediaError:
        if unit.carrier not in DRAWN_CARRIERS:
            raise  # the user's own file: they want to know
        return []  # no font has its letters, or it is too long for a page
