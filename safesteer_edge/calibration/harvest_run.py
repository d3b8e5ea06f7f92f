"""A harvest over many requests: what is in the cache already, the rest through the model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.calibration.carriers import (
    DRAWN_CARRIERS,
    Carrier,
    carriers_of,
)
from safesteer_edge.calibration.harvest import (
    AnswerKind,
    HarvestedAnswer,
    Harvester,
    HarvestPlan,
    forced_texts,
)
from safesteer_edge.calibration.harvest_cache import (
    DEFAULT_LIMIT_BYTES,
    HarvestCache,
    StateShape,
)
from safesteer_edge.calibration.harvest_workers import Share, run_side_by_side
from safesteer_edge.calibration.page_fonts import page_fonts
from safesteer_edge.calibration.requests_data import Label, Request
from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.formats.file_sha256 import file_sha256
from safesteer_edge.formats.model_file import ModelInfo, check_language_model
from safesteer_edge.memory.plan import in_mib
from safesteer_edge.model_choice import check_projector_fits, choose_model
from safesteer_edge.runtime import Runtime, open_runtime
from safesteer_edge.settings import SessionSettings
from safesteer_edge.usable_cores import n_usable_cores

Progress = Callable[[str, int, int], None]  # what, n_done, n_total
_FORMAT: Final = 2  # of what an answer is: change it when harvesting gives other states
# Of the package's requests: enough for a vector and for false alarms, in some minutes. A user's few
# are all drawn, and both of a pair.
_DRAWN_SHARES: Final[dict[Label, float]] = {
    "harmful": 0.3,
    "harmless": 0.3,
    "borderline": 0.12,
    "ordinary": 0.12,
}
_DRAWN_WHOLE: Final = 300


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


@dataclass(frozen=True, slots=True)
class HarvestUnit:
    """One request in one carrier. key: of its file in the cache."""

    request: Request
    carrier: Carrier
    key: str


@dataclass(frozen=True, slots=True)
class Harvest:
    """What was harvested; the states are read from the disk, layer by layer."""

    cache: HarvestCache
    shape: StateShape
    units: tuple[HarvestUnit, ...]

    def without_drawn(self) -> Harvest:
        """The same without what was drawn; pictures of the user's own stay, and ordinary ones."""
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
    info, pairs = _carried(settings, requests)
    shape = StateShape(_layers_within(settings, info, pairs), settings.tail_layers, info.n_embd)
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    runtime = open_runtime(settings.session, layers=shape.layers)
    try:
        units = _units(settings, pairs, runtime, shape)
        missing = [unit for unit in units if not cache.has(unit.key)]
        cache.make_room(
            sum(_n_bytes(unit.request, unit.carrier, settings.plan, shape) for unit in missing),
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
        return harvester.answers(unit.request, unit.carrier)
    except MediaError:
        if unit.carrier not in DRAWN_CARRIERS:
            raise  # the user's own file: they want to know
        return []  # no font has its letters, or it is too long for a page


def _carried(
    settings: HarvestSettings, requests: Sequence[Request]
) -> tuple[ModelInfo, list[tuple[Request, Carrier]]]:
    """The model, and each request with each way in which it takes it. Loads nothing."""
    choice = choose_model(settings.session.model)
    info = check_language_model(choice.path)
    mmproj = settings.session.mmproj or choice.mmproj
    projector = check_projector_fits(mmproj, info) if mmproj is not None else None
    sees = projector is not None and projector.has_vision
    hears = settings.hears and projector is not None and projector.has_audio
    pairs: list[tuple[Request, Carrier]] = [
        (request, carrier)
        for request in requests
        for carrier in carriers_of(
            request,
            sees=sees,
            hears=hears,
            is_drawn=len(requests) <= _DRAWN_WHOLE
            or _share_of(request) < _DRAWN_SHARES[request.label],
        )
    ]
    return info, pairs


def _layers_within(
    settings: HarvestSettings, info: ModelInfo, pairs: Sequence[tuple[Request, Carrier]]
) -> tuple[int, ...]:
    """All inner layers, or every second, third … of them, so that the cache holds their states."""
    n_bytes = 0
    for step in range(1, info.n_layer + 1):
        layers = sorted({*range(0, max(1, info.n_layer - 1), step), *settings.tail_layers})
        shape = StateShape(tuple(layers), settings.tail_layers, info.n_embd)
        n_bytes = sum(_n_bytes(*pair, settings.plan, shape) for pair in pairs)
        if n_bytes <= settings.limit_bytes:
            return shape.layers
    raise SettingsError(
        f"the states of {len(pairs)} requests take {in_mib(n_bytes)}, and the cache may hold "
        f"{in_mib(settings.limit_bytes)}; raise --cache-limit, or give fewer requests"
    )


def _n_bytes(request: Request, carrier: Carrier, plan: HarvestPlan, shape: StateShape) -> int:
    """At most, of one request's file."""
    kinds = [kind for kind, _ in forced_texts(request, carrier, plan)]
    return sum(shape.n_bytes(plan.n_tokens(kind, carrier) + 1) for kind in kinds) + 4096


def _share_of(request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return (
        int.from_bytes(hashlib.sha256(f"drawn {request.id}".encode()).digest()[:4], "big") / 2**32
    )


def _units(
    settings: HarvestSettings,
    pairs: Sequence[tuple[Request, Carrier]],
    runtime: Runtime,
    shape: StateShape,
) -> tuple[HarvestUnit, ...]:
    """In an order that mixes kinds and carriers, so that the time left can be told."""
    base = _key_base(settings, runtime, shape)
    units = [HarvestUnit(*pair, _key(base, *pair, runtime)) for pair in pairs]
    return tuple(sorted(units, key=lambda unit: unit.key))


def _key_base(settings: HarvestSettings, runtime: Runtime, shape: StateShape) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "model": file_sha256(runtime.info.path),
        "template": hashlib.sha256(runtime.template.source.encode()).hexdigest(),
        "route": runtime.route.name if runtime.route else None,
        "gpu_layers": runtime.plan.n_gpu_layers,
        "kv_type": settings.session.kv_type,
        "layers": shape.layers,
        "tail_layers": shape.tail_layers,
        "projector": file_sha256(runtime.mmproj) if runtime.mmproj else None,
        "plan": settings.plan,
    }


def _key(base: dict[str, Any], request: Request, carrier: Carrier, runtime: Runtime) -> str:
    plan: HarvestPlan = base["plan"]
    texts = forced_texts(request, carrier, plan)
    entry = {
        **base,
        "plan": [plan.n_tokens(kind, carrier) for kind, _ in texts],
        "request": [request.id, request.pair_id, request.text, request.label],
        "texts": texts,
        "carrier": carrier,
    }
    own_file = request.image or request.audio
    if carrier == "text":
        del entry["projector"]  # another one answers text alike
    elif own_file is not None:
        entry["file"] = file_sha256(own_file)
    else:
        entry["fonts"] = [path.name if path else "" for path in page_fonts()]
        entry["side"] = runtime.media_decoder.fit.square_side
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:40]
