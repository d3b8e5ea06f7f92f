"""A guard on the test split of the package's own requests: what it changes, and how its probe tells
harmful answers from others.

No probe is fitted to that split, and no number chosen on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from safesteer_edge.errors import InputError
from safesteer_edge.evaluation.bench_machine import measure_in_child
from safesteer_edge.evaluation.plan import HELDOUT, EvalSettings, Narrate
from safesteer_edge.evaluation.rows import Progress
from safesteer_edge.formats.atomic_write import atomic_write
from safesteer_edge.formats.json_values import without_nan
from safesteer_edge.guard.events import TurnEnded
from safesteer_edge.harvest.answers import HarvestedAnswer, Harvester, HarvestPlan
from safesteer_edge.harvest.probe_quality import N_STEPS, ProbeQuality, measure_probe_quality
from safesteer_edge.metrics.refusal_rules import is_refusal
from safesteer_edge.metrics.statistics import Share
from safesteer_edge.requests.requests import LABELS, Label, Request, load_requests
from safesteer_edge.session.runtime import open_runtime
from safesteer_edge.session.session import Session, open_session
from safesteer_edge.session.settings import SessionSettings

# -- what the guard changes: the same requests, greedy, with it and without it ---------------------
# A text counts as refused if the guard ended the turn, or if `refusal_rules` finds a refusal in
# it.


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer. passes: forward passes of its decoding steps."""

    text: str
    refused: bool
    n_tokens: int
    passes: int
    decode_s: float
    interventions: int


@dataclass(frozen=True, slots=True)
class PairedOutcome:
    """The same request without the guard and with it."""

    request: Request
    off: Outcome
    guarded: Outcome

    @property
    def is_identical(self) -> bool:
        """The guard changed no byte of the answer."""
        return self.off.text == self.guarded.text


@dataclass(frozen=True, slots=True)
class GuardEffect:
    """Figures of one label. *_answered: neither refused by the model nor by the guard."""

    label: Label
    identical: Share
    off_answered: Share
    guarded_answered: Share
    passes_per_token: float
    speed_ratio: float


def compare_with_off(
    requests: Iterable[Request],
    off: Session,
    guarded: Session,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> list[PairedOutcome]:
    """Ask every request in both sessions, turn about, each in a new conversation."""
    outcomes: list[PairedOutcome] = []
    for n_done, request in enumerate(requests, start=1):
        outcomes.append(PairedOutcome(request, _ask(off, request), _ask(guarded, request)))
        progress(n_done)
    return outcomes


def summarise(outcomes: Sequence[PairedOutcome], label: Label) -> GuardEffect:
    """The figures of the requests with this label."""
    rows = [row for row in outcomes if row.request.label == label]
    n = len(rows)
    same = [row for row in rows if row.is_identical]  # speed is compared over equal work only
    return GuardEffect(
        label=label,
        identical=Share(len(same), n),
        off_answered=Share(sum(not row.off.refused for row in rows), n),
        guarded_answered=Share(sum(not row.guarded.refused for row in rows), n),
        passes_per_token=_ratio(
            sum(row.guarded.passes for row in rows), sum(row.guarded.n_tokens for row in rows)
        ),
        speed_ratio=_ratio(
            sum(row.off.decode_s for row in same), sum(row.guarded.decode_s for row in same)
        ),
    )


def _ask(session: Session, request: Request) -> Outcome:
    session.reset()
    *_, ended = session.ask(request.text)
    if not isinstance(ended, TurnEnded):
        raise TypeError(f"a turn ended with {type(ended).__name__}")
    return Outcome(
        text=ended.text,
        refused=ended.finish_reason == "refused" or is_refusal(ended.text),
        n_tokens=ended.usage.completion_tokens,
        passes=ended.usage.forward_passes,
        decode_s=ended.timings.decode_s,
        interventions=ended.guard.interventions,
    )


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


HeldoutProgress = Callable[[int], None]  # told how many requests are done


@dataclass(frozen=True, slots=True)
class HeldoutProbe:
    """quality: candidates in words that calibration never uses. known: the same harmful requests,
    after openings that it does use; only its candidates mean something.
    """

    quality: ProbeQuality
    known: ProbeQuality

    def to_json(self) -> dict[str, Any]:
        """Values for JSON, NaN among them where there are too few requests."""
        candidates = {
            "steps": [row.candidate for row in self.known.steps],
            "early_candidate": self.known.early_candidate,
        }
        return {**asdict(self.quality), "known_openings": candidates}


def requests_of_test_split(
    limit: int | None = None, *, labels: Sequence[Label] | None = None
) -> list[Request]:
    """The test split, of each label the first `limit`."""
    kept: list[Request] = []
    n_by_label: dict[str, int] = {}
    for request in load_requests(splits=("test",), labels=labels):
        n_by_label[request.label] = n_by_label.get(request.label, 0) + 1
        if limit is None or n_by_label[request.label] <= limit:
            kept.append(request)
    return kept


def n_probe_requests(requests: Sequence[Request]) -> int:
    """How many `measure_probe` asks: the harmful ones twice."""
    return len(requests) + len(_harmful(requests))


def measure_probe(
    settings: SessionSettings,
    requests: Sequence[Request],
    *,
    progress: HeldoutProgress = lambda _: None,
) -> HeldoutProbe:
    """Harvest the requests' answers on the decode path and score them; greedy, 16 tokens each.

    settings: with a guard. Raises ModelFileError, BundleError, EngineError.
    """
    plan = HarvestPlan(n_own_tokens=N_STEPS, n_forced_tokens=N_STEPS, n_openings=2)
    known_plan = replace(plan, n_own_tokens=1, opening_split="train")
    runtime = open_runtime(settings)
    try:
        assert runtime.bundle is not None  # a guard has one
        policy, probe = runtime.bundle.policy, runtime.bundle.probe
        n_done = 0
        qualities: list[ProbeQuality] = []
        for asked, each_plan in ((requests, plan), (_harmful(requests), known_plan)):
            harvester = Harvester(runtime, each_plan)
            answers: list[HarvestedAnswer] = []
            for request in asked:
                answers += harvester.answers(request)
                n_done += 1
                progress(n_done)
            qualities.append(
                measure_probe_quality(
                    answers,
                    probe,
                    prompt_weight=policy.prompt_weight,
                    answer_prior=policy.answer_prior,
                )
            )
    finally:
        runtime.close()
    return HeldoutProbe(*qualities)


def measure_guard_effects(
    settings: SessionSettings,
    requests: Sequence[Request],
    *,
    progress: HeldoutProgress = lambda _: None,
) -> list[GuardEffect]:
    """Ask every request with this guard and without one; the figures of each label.

    Raises ModelFileError, BundleError, EngineError.
    """
    with (
        open_session(replace(settings, guard="off")) as off,
        open_session(settings) as guarded,
    ):
        outcomes = compare_with_off(requests, off, guarded, progress=progress)
    return [summarise(outcomes, label) for label in LABELS]


def effect_to_json(effect: GuardEffect) -> dict[str, Any]:
    """Values for JSON, with Wilson's intervals of the shares."""
    value = asdict(effect)
    for key in ("identical", "off_answered", "guarded_answered"):
        value[key]["wilson_95"] = getattr(effect, key).interval
    return value


def _harmful(requests: Sequence[Request]) -> list[Request]:
    return [request for request in requests if request.label == "harmful"]


# -- what a run measures at its very end where it is asked for: the guard on the whole test split --

MAX_TOKENS: Final = 64  # as many as `measure guard` takes

_Measure = Callable[[SessionSettings, int | None], Any]


def measure_heldout(settings: EvalSettings, narrate: Narrate) -> None:
    """What `measure guard` and `measure probe` measure; each is kept if it was measured before."""
    if not settings.with_heldout:
        return
    path = settings.folder / HELDOUT
    session = replace(
        settings.session,
        guard="steer",
        rerank="lazy",
        max_tokens=MAX_TOKENS,
        sampling=replace(settings.session.sampling, temperature=0.0),
    )
    kept = _read(path)
    for name, (what, measure) in _PARTS.items():
        if name in kept:
            continue
        narrate(f"held out: {what}")
        kept[name] = measure_in_child(measure, session, settings.limit)
        kept["max_tokens"] = MAX_TOKENS
        with atomic_write(path, "w") as stream:
            json.dump(without_nan(kept), stream, ensure_ascii=False)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}; remove it") from error


def _measure_guard(session: SessionSettings, limit: int | None) -> list[dict[str, Any]]:
    requests = requests_of_test_split(limit)
    progress = Progress(len(requests), "held-out requests, with the guard and without")
    effects = measure_guard_effects(session, requests, progress=lambda _: progress.add())
    return [effect_to_json(effect) for effect in effects]


def _measure_probe(session: SessionSettings, limit: int | None) -> dict[str, Any]:
    requests = requests_of_test_split(limit)
    progress = Progress(n_probe_requests(requests), "held-out requests, for the probe")
    return measure_probe(session, requests, progress=lambda _: progress.add()).to_json()


_PARTS: Final[Mapping[str, tuple[str, _Measure]]] = {
    "guard": ("what the guard changes", _measure_guard),
    "probe": ("how well the probe separates", _measure_probe),
}
