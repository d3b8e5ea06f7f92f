"""A harvest over many requests: in which carriers each comes, and which of them are answered; what
is in the cache already, and the rest through the model.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from safesteer_edge.errors import MediaError, SettingsError
from safesteer_edge.formats.atomic_write import hash_file
from safesteer_edge.formats.model_file import ModelInfo, check_language_model, check_projector_fits
from safesteer_edge.harvest.answers import (
    AnswerKind,
    HarvestedAnswer,
    HarvestPlan,
    Piece,
    answers_to,
    forced_texts,
)
from safesteer_edge.harvest.batches import Asked, known_answers, open_many, own_answers
from safesteer_edge.harvest.cache import HarvestCache, HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import (
    DRAWN_CARRIERS,
    TEXT_CARRIERS,
    Carrier,
    carriers_of,
    earlier_messages,
    page_fonts,
    written_words,
)
from safesteer_edge.harvest.workers import run_side_by_side
from safesteer_edge.library.memory_plan import in_mib
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.requests.requests import LABELS, TRANSLATED, Label, Request, lot_of
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
_WRAPPED_SHARE_IN_BATCHES: Final = 0.5  # beside the plain text: how it is put must say nothing
# Where requests are read in batches also behind an exchange about something else, and all of those
# that people make of what was said: "Go on." was harmful to a probe of first messages alone.
_LATER_SHARE: Final = 0.15
_LATER_GROUP: Final = "follow_up"
_DRAWN_WHOLE: Final = 300


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request in one carrier. is_answered: False: only its prompt is read.

    key: of its file in the cache, a hash of all that decides the file's content. piece: of its
    answers, where text is harvested in batches.
    """

    request: Request
    carrier: Carrier
    is_answered: bool = True
    key: str = ""
    piece: Piece = "whole"

    def texts(self, plan: HarvestPlan) -> tuple[tuple[AnswerKind, str], ...]:
        """See `forced_texts`."""
        return forced_texts(
            self.request, self.carrier, plan, is_answered=self.is_answered, piece=self.piece
        )

    def n_bytes_at_most(self, plan: HarvestPlan, shape: StateShape) -> int:
        """At most, of its file in the cache."""
        lengths = [plan.n_tokens(kind, self.carrier) for kind, _ in self.texts(plan)]
        return sum(shape.n_bytes(length + 2) for length in lengths) + 4096


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
    answered, plan = answered_ids(requests, settings.plan), settings.plan
    is_few = len(requests) <= _DRAWN_WHOLE
    requests = requests_read(requests, plan)
    planned = [
        PlannedRequest(
            request,
            carrier,
            is_answered=request.id in answered and carrier not in ("wrapped", "later"),
        )
        for request in requests
        for carrier in _carriers(
            request,
            carriers_of(
                request,
                sees=sees,
                hears=hears,
                is_drawn=plan.draws
                and (is_few or _share("drawn", request) < _DRAWN_SHARES[request.label]),
                is_beside=plan.draws and (is_few or _share("beside", request) < _BESIDE_SHARE),
            ),
            is_plain=is_few or not plan.wraps,
            # In batches a request is read plain whether or not it is answered.
            is_answered=request.id in answered or plan.in_batches,
            wrapped_share=_WRAPPED_SHARE_IN_BATCHES if plan.in_batches else _WRAPPED_SHARE,
            later_share=_LATER_SHARE if plan.in_batches else 0.0,
        )
    ]
    if plan.in_batches:
        planned = [piece for each in planned for piece in _pieces(each, answered)]
    return info, planned


def requests_read(requests: Sequence[Request], plan: HarvestPlan) -> list[Request]:
    """Those of which there is anything at all, drawn as `answered_ids` draws, in their order.

    What a smaller plan reads is part of what a larger one does.
    """
    ids = {request.id for request in requests if request.image or request.audio}
    for label in LABELS:
        ours = _by_lot(r for r in requests if r.label == label and not r.is_translated)
        ids.update(request.id for request in ours[: plan.n_requests(label)])
        for language in TRANSLATED:
            ours = _by_lot(r for r in requests if r.label == label and _is_in(language, r))
            ids.update(request.id for request in ours[: plan.n_read_translated])
    return [request for request in requests if request.id in ids]


def _is_in(language: str, request: Request) -> bool:
    return request.is_translated and request.language == language


def _by_lot(requests: Iterable[Request]) -> list[Request]:
    return sorted(requests, key=turn_of)


def turn_of(request: Request) -> int:
    """By which requests are drawn, the smallest first: of both of a pair the same."""
    return lot_of(f"answered {request.pair_id or request.id}")


def _pieces(planned: PlannedRequest, answered: Collection[str]) -> list[PlannedRequest]:
    """What is known beforehand, of each text; the own answer, of those that are answered."""
    is_answered = planned.request.id in answered
    if planned.carrier not in TEXT_CARRIERS:
        return [planned] if is_answered else []
    known = replace(planned, piece="known", is_answered=planned.carrier == "text")
    if planned.carrier != "text" or not is_answered:
        return [known]
    return [known, replace(planned, piece="own")]


def _carriers(
    request: Request,
    possible: Sequence[Carrier],
    *,
    is_plain: bool,
    is_answered: bool,
    wrapped_share: float,
    later_share: float,
) -> Sequence[Carrier]:
    """Those of the possible ones that are harvested; each is a way to ask, if not to be answered.

    Without an answer a request is read in one way: plain, or among other words. A few requests
    do not tell how much other words matter, and come plain.
    """
    wrapped = _share("wrapped", request)
    if is_answered:
        if "text" not in possible or is_plain:
            return possible
        is_follow_up = request.group == _LATER_GROUP
        return (
            *possible,
            *(("wrapped",) if wrapped < wrapped_share and not is_follow_up else ()),
            *(("later",) if _share("later", request) < later_share or is_follow_up else ()),
        )
    is_wrapped = possible[:1] == ("text",) and not is_plain and wrapped < _WRAPPED_SHARE_UNANSWERED
    return ("wrapped",) if is_wrapped else possible[:1]


def answered_ids(requests: Sequence[Request], plan: HarvestPlan) -> frozenset[str]:
    """The requests that are answered: at most `plan.n_answers` of a label, those with media always.

    Drawn by a hash of the request alone, or of its pair: both sides are answered, or neither.
    """
    with_media = [request for request in requests if request.image or request.audio]
    ids = {request.id for request in with_media}
    for label in LABELS:
        ours = _by_lot(
            each
            for each in requests
            if each.label == label and each.id not in ids and not each.is_translated
        )
        ids.update(request.id for request in ours[: plan.n_answers(label)])
    return frozenset(ids)


def _share(purpose: str, request: Request) -> float:
    """A number in [0, 1) of the request alone."""
    return lot_of(f"{purpose} {request.id}") / 2**32


# -- what a harvest consists of: units, their keys, and the layers whose states they keep ----------
# A unit is one request in one carrier. Its key hashes all that decides the content of its file.

_FORMAT: Final = 3  # of what an answer is: change it when harvesting gives other states


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
    if planned.piece != "whole":
        entry["piece"] = planned.piece
    own_file = request.image or request.audio
    if carrier in ("wrapped", "beside"):
        entry["words"] = written_words(request, carrier)
    if carrier == "later":
        entry["earlier"] = [message.text for message in earlier_messages(request, carrier)]
    if carrier in TEXT_CARRIERS:
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

    def of(self, piece: Piece) -> tuple[list[PlannedRequest], list[PlannedRequest]]:
        """The units of this piece, and those of them that are not there yet."""
        ours = [unit for unit in self.units if unit.piece == piece]
        return ours, [unit for unit in ours if not self.cache.has(unit.key)]

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
    is_alone, one_by_one = True, list[PlannedRequest]()
    with _begun(settings, requests) as (runtime, harvested):
        for piece, what in _PIECES.items():
            ours, missing = harvested.of(piece)
            if piece == "whole":
                one_by_one = missing
                is_alone = settings.n_workers == 1 or runtime.plan.n_gpu_layers > 0 or not missing
            if ours and is_alone:
                done = _harvested(runtime, settings, harvested.shape, missing)
                _count(done, len(missing), len(ours), what, progress)
    if not is_alone:
        # The units are dealt out to processes that share the cores.
        n_threads = settings.session.n_threads or n_usable_cores()
        session = replace(settings.session, n_threads=max(1, n_threads // settings.n_workers))
        shared = replace(settings, session=session)
        work = functools.partial(_harvest_share, shared, harvested.shape)
        done = run_side_by_side(work, one_by_one, n_workers=settings.n_workers)
        n_all = len(harvested.of("whole")[0])
        _count(done, len(one_by_one), n_all, _PIECES["whole"], progress)
    return harvested


# In this order, and what is said meanwhile.
_PIECES: Final[dict[Piece, str]] = {
    "known": "reading requests",
    "own": "answering requests",
    "whole": "harvesting answers",
}
# A trial is of so much, or of what takes so long once it is under way.
_N_TRIED_ANSWERS: Final = 32  # own ones: fewer at once take longer each
_N_TRIED_WHOLE: Final = 6
_TRIED_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What units take on this machine, and how many of each piece are not there yet.

    each_s: of a unit of each piece; of an own answer among others, as which one counts that an
    opening led to.
    """

    each_s: Mapping[Piece, float]
    n_missing: Mapping[Piece, int]


def counted(units: Iterable[PlannedRequest], plan: HarvestPlan) -> Counter[Piece]:
    """Units by piece, own answers one by one: what `Trial.each_s` is of."""
    counts = Counter[Piece]()
    for unit in units:
        counts[unit.piece] += _n_counted(unit, plan)
    return counts


def _n_counted(unit: PlannedRequest, plan: HarvestPlan) -> int:
    return len(unit.texts(plan)) if unit.piece == "own" else 1


def try_harvest(settings: HarvestSettings, requests: Sequence[Request]) -> Trial:
    """Harvest a few requests of each piece, which stay in the cache, and say what they took.

    Takes some 10 seconds with a small model. Raises what `harvest` raises.
    """
    settings = replace(settings, session=replace(settings.session, guard="off"))
    plan, each_s, n_missing = settings.plan, dict[Piece, float](), Counter[Piece]()
    with _begun(settings, requests) as (runtime, harvested):
        for piece in _PIECES:
            ours, missing = harvested.of(piece)
            # How long an answer takes is asked even where all are there.
            tried = missing if piece == "whole" else missing or ours
            if piece == "own":
                totals = itertools.accumulate(_n_counted(unit, plan) for unit in tried)
                tried = [u for u, n in zip(tried, totals, strict=True) if n <= _N_TRIED_ANSWERS]
            elif piece == "whole":
                tried = tried[:_N_TRIED_WHOLE]
            if tried:
                each_s[piece] = _each_s(
                    _harvested(runtime, settings, harvested.shape, tried),
                    [_n_counted(unit, plan) for unit in tried],
                )
                if piece == "whole" and not runtime.plan.n_gpu_layers:
                    each_s[piece] /= settings.n_workers
            n_missing += counted(harvested.of(piece)[1], plan)
    return Trial(each_s, n_missing)


def _each_s(done: Generator[None], counts: Sequence[int]) -> float:
    """What one takes. counts: as how many each unit counts.

    Batches come whole: where there is more to do than is waited for, it is the time from the first
    unit of one batch to the first of another; the first of all waits for the weights, too.
    """
    started_s = time.monotonic()
    times: list[float] = []
    with closing(done):
        for _ in done:
            times.append(time.monotonic())
            if times[-1] - times[0] > _TRIED_S:
                return (times[-1] - times[0]) / sum(counts[: len(times) - 1])
    return (times[-1] - started_s) / sum(counts)


@contextmanager
def _begun(
    settings: HarvestSettings, requests: Sequence[Request]
) -> Generator[tuple[Runtime, Harvest]]:
    """The runtime, and what is to be harvested, for which the disk has room."""
    info, planned = planned_requests(settings, requests)
    shape = StateShape(layers_within(settings, info, planned), settings.tail_layers, info.n_embd)
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    with closing(open_runtime(settings.session, layers=shape.layers)) as runtime:
        base = _key_base(settings, runtime, shape)
        units = [replace(u, key=_key(base, settings.plan, u, runtime)) for u in planned]
        # Kinds and carriers are mixed, so that the time left can be told.
        units.sort(key=lambda unit: unit.key)
        cache.make_room(
            sum(u.n_bytes_at_most(settings.plan, shape) for u in units if not cache.has(u.key)),
            keep=[unit.key for unit in units],
        )
        yield runtime, Harvest(cache, shape, tuple(units))


def _count(done: Iterator[None], n_missing: int, n_all: int, what: str, progress: Progress) -> None:
    progress(what, n_all - n_missing, n_all)
    for n_done, _ in enumerate(done, start=n_all - n_missing + 1):
        progress(what, n_done, n_all)


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
) -> Generator[None]:
    """Answers to each unit, all of one piece, into the cache."""
    cache = HarvestCache(settings.cache, limit_bytes=settings.limit_bytes)
    plan = settings.plan
    # A recurrent state cannot be told apart in a batch (see ManySequences): one by one then.
    if not units or units[0].piece == "whole" or runtime.model.has_recurrent_state:
        for unit in units:
            cache.put(unit.key, _answers(runtime, plan, unit), shape)
            yield
        return
    answers_of = known_answers if units[0].piece == "known" else own_answers
    asked = (Asked(unit.request, unit.carrier, unit.texts(plan)) for unit in units)
    with closing(open_many(runtime, settings.session, shape.layers)) as many:
        for unit, answers in zip(units, answers_of(many, runtime, plan, asked), strict=True):
            cache.put(unit.key, answers, shape)
            yield


def _answers(runtime: Runtime, plan: HarvestPlan, unit: PlannedRequest) -> list[HarvestedAnswer]:
    is_answered, piece = unit.is_answered, unit.piece
    try:
        return answers_to(
            unit.request, runtime, plan, unit.carrier, is_answered=is_answered, piece=piece
        )
    except MediaError:
        if unit.carrier not in DRAWN_CARRIERS:
            raise  # the user's own file: they want to know
        return []  # no font has its letters, or it is too long for a page
