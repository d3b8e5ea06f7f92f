"""A harvest over many requests: in which carriers each comes, and which of them are answered; what
is in the cache already, and the rest through the model.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.harvest.answers import (
    AnswerKind,
    HarvestedAnswer,
    HarvestPlan,
    answers_to,
    forced_texts,
)
from safesteer_edge.harvest.cache import HarvestCache, HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import (
    DRAWN_CARRIERS,
    Carrier,
    carriers_of,
    page_fonts,
    written_words,
)
from safesteer_edge.harvest.workers import run_side_by_side
from safesteer_edge.library.memory_plan import in_mib
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.requests.requests import LABELS, Label, Request, lot_of
from safesteer_edge.session.choice import choose_model
from safesteer_edge.session.runtime import Runtime, open_runtime

# Of the package's requests: enough for a vector and for false alarms, in some minutes. A user's few
# are all drawn, and both of a pair.
_DRAWN_SHARES: Final[dict[Label, float]] = {
    "harmful": 0.3,
    "harmless": 0.3,
    "borderline": 0.1,
    "ordinary": 0.1,
}
_BESIDE_SHARE: Final = 0.15
# Among other words too, and of those without answers in place of the plain text.
_WRAPPED_SHARE: Final = 0.25
_WRAPPED_SHARE_UNANSWERED: Final = 0.5
_DRAWN_WHOLE: Final = 300


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request in one carrier. is_answered: False: only its prompt is read.

    key: of its file in the cache, a hash of all that decides the file's content.
    """

    request: Request
    carrier: Carrier
    is_answered: bool = True
    key: str = ""

    def texts(self, plan: HarvestPlan) -> tuple[tuple[AnswerKind, str], ...]:
        """See `forced_texts`."""
        return forced_texts(self.request, self.carrier, plan, is_answered=self.is_answered)

    def n_bytes_at_most(self, plan: HarvestPlan, shape: StateShape) -> int:
        """At most, of its file in the cache."""
        lengths = [plan.n_tokens(kind, self.carrier) for kind, _ in self.texts(plan)]
        return sum(shape.n_bytes(length + 1) for length in lengths) + 4096


def planned_requests(
    settings: HarvestSettings, requests: Sequence[Request]
) -> tuple[ModelInfo, list[PlannedRequest]]:
    """The model, and each request with each way in which it takes it. Loads nothing."""
    choice = choose_model(settings.session.model)
    info = check_language_model(choice.path)
    mmproj = settings.session.mmproj or choice.mmproj
    projector = check_projector_fits(mmproj, info) if mmproj is not None else None
    sees = projector is not None and projector.has_vision
    hears = settings.hears and projector is not None and projector.has_audio
    answered = answered_ids(requests, settings.plan)
    is_few = len(requests) <= _DRAWN_WHOLE
    planned = [
        PlannedRequest(
            request, carrier, is_answered=request.id in answered and carrier != "wrapped"
        )
        for request in requests
        for carrier in _carriers(
            request,
            carriers_of(
                request,
                sees=sees,
                hears=hears,
                is_drawn=is_few or _share("drawn", request) < _DRAWN_SHARES[request.label],
                is_beside=is_few or _share("beside", request) < _BESIDE_SHARE,
            ),
            is_few=is_few,
            is_answered=request.id in answered,
        )
    ]
    return info, planned


def _carriers(
    request: Request, possible: Sequence[Carrier], *, is_few: bool, is_answered: bool
) -> Sequence[Carrier]:
    """Those of the possible ones that are harvested; each is a way to ask, if not to be answered.

    Without an answer a request is read in one way: plain, or among other words. A few requests
    do not tell how much other words matter, and come plain.
    """
    wrapped = _share("wrapped", request)
    if is_answered:
        is_wrapped = "text" in possible and not is_few and wrapped < _WRAPPED_SHARE
        return (*possible, "wrapped") if is_wrapped else possible
    is_wrapped = possible[:1] == ("text",) and not is_few and wrapped < _WRAPPED_SHARE_UNANSWERED
    return ("wrapped",) if is_wrapped else possible[:1]


def answered_ids(requests: Sequence[Request], plan: HarvestPlan) -> frozenset[str]:
    """The requests that are answered: at most `plan.n_answers` of a label, those with media always.

    Drawn by a hash of the request alone, or of its pair: both sides are answered, or neither.
    """
    with_media = [request for request in requests if request.image or request.audio]
    ids = {request.id for request in with_media}
    for label in LABELS:
        ours = [each for each in requests if each.label == label and each.id not in ids]
        ours.sort(key=lambda request: lot_of(f"answered {request.pair_id or request.id}"))
        ids.update(request.id for request in ours[: plan.n_answers(label)])
    return frozenset(ids)


def _share(purpose: str, request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return lot_of(f"{purpose} {request.id}") / 2**32


# -- what a harvest consists of: units, their keys, and the layers whose states they keep ----------
# A unit is one request in one carrier. Its key hashes all that decides the content of its file.

_FORMAT: Final = 2  # of what an answer is: change it when harvesting gives other states


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
    }


def _key(base: dict[str, Any], plan: HarvestPlan, planned: PlannedRequest, runtime: Runtime) -> str:
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
    units: tuple[PlannedRequest, ...]

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
    settings = replace(settings, session=replace(settings.session, guard="off"))
    info, planned = planned_requests(settings, requests)
    shape = StateShape(layers_within(settings, info, planned), settings.tail_layers, info.n_embd)
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    with closing(open_runtime(settings.session, layers=shape.layers)) as runtime:
        base = _key_base(settings, runtime, shape)
        units = [replace(u, key=_key(base, settings.plan, u, runtime)) for u in planned]
        # Kinds and carriers are mixed, so that the time left can be told.
        units.sort(key=lambda unit: unit.key)
        missing = [unit for unit in units if not cache.has(unit.key)]
        cache.make_room(
            sum(unit.n_bytes_at_most(settings.plan, shape) for unit in missing),
            keep=[unit.key for unit in units],
        )
        is_alone = settings.n_workers == 1 or runtime.plan.n_gpu_layers > 0 or not missing
        if is_alone:
            _count(_harvested(runtime, settings, shape, missing), missing, units, progress)
    if not is_alone:
        # The units are dealt out to processes that share the cores.
        n_threads = settings.session.n_threads or n_usable_cores()
        session = replace(settings.session, n_threads=max(1, n_threads // settings.n_workers))
        work = functools.partial(_harvest_share, replace(settings, session=session), shape)
        done = run_side_by_side(work, missing, n_workers=settings.n_workers)
        _count(done, missing, units, progress)
    return Harvest(cache, shape, tuple(units))


def _count(
    done: Iterator[None],
    missing: Sequence[PlannedRequest],
    units: Sequence[PlannedRequest],
    progress: Progress,
) -> None:
    n_before = len(units) - len(missing)
    progress("harvesting answers", n_before, len(units))
    for n_done, _ in enumerate(done, start=n_before + 1):
        progress("harvesting answers", n_done, len(units))


def _harvest_share(
    settings: HarvestSettings, shape: StateShape, units: Sequence[PlannedRequest]
) -> Iterator[None]:
    with closing(open_runtime(settings.session, layers=shape.layers)) as runtime:
        yield from _harvested(runtime, settings, shape, units)


def _harvested(
    runtime: Runtime,
    settings: HarvestSettings,
    shape: StateShape,
    units: Sequence[PlannedRequest],
) -> Iterator[None]:
    """Answers to each unit into the cache, one after the other."""
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    for unit in units:
        cache.put(unit.key, _answers(runtime, settings.plan, unit), shape)
        yield


def _answers(runtime: Runtime, plan: HarvestPlan, unit: PlannedRequest) -> list[HarvestedAnswer]:
    is_answered = unit.is_answered
    try:
        return answers_to(unit.request, runtime, plan, unit.carrier, is_answered=is_answered)
    except MediaError:
        if unit.carrier not in DRAWN_CARRIERS:
            raise  # the user's own file: they want to know
        return []  # no font has its letters, or it is too long for a page
