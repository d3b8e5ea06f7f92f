"""A harvest over many requests: what is in the cache already, the rest through the model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.model_file import ModelInfo
from safesteer_edge.harvest.answers import AnswerKind, HarvestedAnswer, Harvester, HarvestPlan
from safesteer_edge.harvest.cache import HarvestCache, HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import DRAWN_CARRIERS, Carrier, page_fonts, written_words
from safesteer_edge.harvest.planned import PlannedRequest, planned_requests
from safesteer_edge.harvest.workers import run_side_by_side
from safesteer_edge.library.memory_plan import in_mib
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.runtime import Runtime, open_runtime

# -- what a harvest consists of: units, their keys, and the layers whose states they keep ----------
# A unit is one request in one carrier. Its key hashes all that decides the content of its file.

_FORMAT: Final = 2  # of what an answer is: change it when harvesting gives other states


@dataclass(frozen=True, slots=True)
class HarvestUnit:
    """What is harvested at a time. key: of its file in the cache."""

    planned: PlannedRequest
    key: str

    @property
    def request(self) -> Request:
        """The request."""
        return self.planned.request

    @property
    def carrier(self) -> Carrier:
        """How it reaches the model."""
        return self.planned.carrier


def layers_within(
    settings: HarvestSettings, info: ModelInfo, planned: Sequence[PlannedRequest]
) -> tuple[int, ...]:
    """All inner layers, or every second, third … of them, so that the cache holds their states."""
    n_bytes = 0
    for step in range(1, info.n_layer + 1):
        layers = sorted({*range(0, max(1, info.n_layer - 1), step), *settings.tail_layers})
        shape = StateShape(tuple(layers), settings.tail_layers, info.n_embd)
        n_bytes = sum(each.n_bytes_at_most(settings.plan, shape) for each in planned)
        if n_bytes <= settings.limit_bytes:
            return shape.layers
    raise SettingsError(
        f"the states of {len(planned)} requests take {in_mib(n_bytes)}, and the cache may hold "
        f"{in_mib(settings.limit_bytes)}; raise --cache-limit, or give fewer requests"
    )


def units_of(
    settings: HarvestSettings,
    planned: Sequence[PlannedRequest],
    runtime: Runtime,
    shape: StateShape,
) -> tuple[HarvestUnit, ...]:
    """In an order that mixes kinds and carriers, so that the time left can be told."""
    base = _key_base(settings, runtime, shape)
    units = [HarvestUnit(each, _key(base, each, runtime)) for each in planned]
    return tuple(sorted(units, key=lambda unit: unit.key))


def _key_base(settings: HarvestSettings, runtime: Runtime, shape: StateShape) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": hash_file(runtime.info.path),
        "template": hashlib.sha256(runtime.template.source.encode()).hexdigest(),
        "route": runtime.route.name if runtime.route else None,
        "gpu_layers": runtime.plan.n_gpu_layers,
        "kv_type": settings.session.kv_type,
        "layers": shape.layers,
        "tail_layers": shape.tail_layers,
        "projector": hash_file(runtime.mmproj) if runtime.mmproj else None,
        "plan": settings.plan,
    }


def _key(base: dict[str, Any], planned: PlannedRequest, runtime: Runtime) -> str:
    plan: HarvestPlan = base["plan"]
    request, carrier = planned.request, planned.carrier
    texts = planned.texts(plan)
    entry = {
        **base,
        "plan": [plan.n_tokens(kind, carrier) for kind, _ in texts],
        "request": [request.id, request.pair_id, request.text, request.label],
        "texts": texts,
        "carrier": carrier,
    }
    own_file = request.image or request.audio
    if carrier in ("wrapped", "beside"):
        entry["words"] = written_words(request, carrier)
    if carrier in ("text", "wrapped"):
        del entry["projector"]  # another one answers text alike
    elif own_file is not None:
        entry["file"] = hash_file(own_file)
    else:
        entry["fonts"] = [path.name if path else "" for path in page_fonts()]
        entry["side"] = runtime.media_decoder.fit.square_side
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:40]


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
        # The units are dealt out to processes that share the cores.
        n_threads = settings.session.n_threads or n_usable_cores()
        session = replace(settings.session, n_threads=max(1, n_threads // settings.n_workers))
        work = functools.partial(_harvest_share, replace(settings, session=session), shape)
        done = run_side_by_side(work, missing, n_workers=settings.n_workers)
        _count(done, missing, units, progress)
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
