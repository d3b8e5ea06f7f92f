"""A harvest over many requests: what is in the cache already, and the rest through the model."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from safesteer_edge.errors import EngineError, MediaError
from safesteer_edge.harvest.answers import (
    AnswerKind,
    Asked,
    HarvestedAnswer,
    HarvestPlan,
    Piece,
    answers_to,
    known_answers,
    open_many,
    own_answers,
)
from safesteer_edge.harvest.cache import HarvestCache, HarvestSettings, StateShape
from safesteer_edge.harvest.carriers import (
    DRAWN_CARRIERS,
    Carrier,
)
from safesteer_edge.harvest.units import (
    PlannedRequest,
    key_base,
    key_of,
    layers_within,
    planned_requests,
)
from safesteer_edge.library.memory_plan import free_memory
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.processes.pool import Work, share_out
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.runtime import Runtime, open_runtime
from safesteer_edge.session.settings import SessionSettings

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
        base = key_base(settings, runtime, shape)
        units = [replace(u, key=key_of(base, settings.plan, u, runtime)) for u in planned]
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


# -- how many processes do it side by side ---------------------------------------------------------
# A small model's decoding steps are so short that its threads mostly wait for each other: two
# processes of one thread harvest the embedded default half as fast again as one of two threads. The
# states are the same bits, however many threads compute them.

Item = TypeVar("Item")

# Measured with the default model: 310 MiB in use by a guarded process, 94 of them mapped weights.
_BESIDES_WEIGHTS_BYTES: Final = 320 << 20
_SMALL_MODEL_BYTES: Final = 512 << 20  # above, threads have enough to do for each step
_MAX_WORKERS: Final = 8


def workers_that_fit(n_wanted: int, model_bytes: int, *, free_bytes: int | None = None) -> int:
    """As many processes as free memory has room for, at least one; all where it is not known.

    free_bytes: None asks the system. The mapped weights are shared, but llama.cpp may hold a
    second, repacked copy of its own in each process.
    """
    free = free_memory()[0] if free_bytes is None else free_bytes
    if free is None:
        return n_wanted
    return max(1, min(n_wanted, free // (model_bytes + _BESIDES_WEIGHTS_BYTES)))


def default_workers(session: SessionSettings, model_bytes: int) -> int:
    """How many processes harvest a model best here: one a core where it is small, else one."""
    if model_bytes > _SMALL_MODEL_BYTES or session.n_gpu_layers:
        return 1
    n_threads = session.n_threads or n_usable_cores()
    return workers_that_fit(min(n_threads, _MAX_WORKERS), model_bytes)


def run_side_by_side(
    work: Work[Item, None], items: Sequence[Item], *, n_workers: int
) -> Iterator[None]:
    """Do the items in so many processes; yield whenever one is done.

    Raises what the work raised, and EngineError where a process died.
    """
    for done in share_out(work, items, n_workers=n_workers):
        if done is not None:
            raise EngineError(
                f"the process that ran the model died (exit code {done.exit_code}); run the "
                "same command again to continue, with --workers 1 if memory is short"
            )
        yield
