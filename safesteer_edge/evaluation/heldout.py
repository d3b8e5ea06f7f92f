"""A guard on the test split of the package's own requests: what it changes, how its probe tells
harmful answers from others, and whether lazy re-ranking is eager re-ranking. What `measure` runs.

No probe is fitted to that split, and no number chosen on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from safesteer_edge.guard.events import Step, TurnEnded
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.reranking import Tilt
from safesteer_edge.harvest.answers import HarvestedAnswer, HarvestPlan, answers_to
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

_Progress = Callable[[int], None]  # told how many requests are done


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
    progress: _Progress = lambda _: None,
) -> list[PairedOutcome]:
    """Ask every request in both sessions, turn about, each in a new conversation."""
    outcomes: list[PairedOutcome] = []
    for n_done, request in enumerate(requests, start=1):
        plain, kept = (_outcome(ask_anew(each, request.text), request) for each in (off, guarded))
        outcomes.append(PairedOutcome(request, plain, kept))
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


def ask_anew(session: Session, text: str) -> TurnEnded:
    """Ask in a new conversation; how the turn ended."""
    session.reset()
    *_, ended = session.ask(text)
    if not isinstance(ended, TurnEnded):
        raise TypeError(f"a turn ended with {type(ended).__name__}")
    return ended


def _outcome(ended: TurnEnded, request: Request) -> Outcome:
    return Outcome(
        text=ended.text,
        refused=ended.finish_reason == "refused" or is_refusal(ended.text, request.text),
        n_tokens=ended.usage.completion_tokens,
        passes=ended.usage.forward_passes,
        decode_s=ended.timings.decode_s,
        interventions=ended.guard.interventions,
    )


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


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
    progress: _Progress = lambda _: None,
) -> HeldoutProbe:
    """Harvest the requests' answers on the decode path and score them; greedy, 16 tokens each.

    settings: with a guard. Raises ModelFileError, BundleError, EngineError.
    """
    plan = HarvestPlan(n_own_tokens=N_STEPS, n_forced_tokens=N_STEPS, n_openings=2)
    known_plan = replace(plan, n_own_tokens=1, opening_split="train")
    with closing(open_runtime(settings)) as runtime:
        assert runtime.bundle is not None  # a guard has one
        policy, probe = runtime.bundle.policy, runtime.bundle.probe
        n_done = 0
        qualities: list[ProbeQuality] = []
        for asked, each_plan in ((requests, plan), (_harmful(requests), known_plan)):
            answers: list[HarvestedAnswer] = []
            for request in asked:
                answers += answers_to(request, runtime, each_plan)
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
    return HeldoutProbe(*qualities)


def measure_guard_effects(
    settings: SessionSettings,
    requests: Sequence[Request],
    *,
    progress: _Progress = lambda _: None,
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


# -- lazy ≡ eager on the real engine: the same tokens at temperature 0, or a reason why not --------
# One token and k tokens run in different kernels, so a state and its score differ a little between
# the two. The noise is measured on tokens that both forms emitted from the same prefix: the largest
# difference of a token's guarded value, log p − penalty. A first difference in the token sequence
# is explained if eager's values of the two tokens lie within twice that noise (one for each).


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step at which the forms chose differently. gap: of eager's two guarded values."""

    request_id: str
    step: int
    gap: float


@dataclass(frozen=True, slots=True)
class RerankEquality:
    """noise: nats, the largest difference of one token's guarded value between the forms."""

    n_prompts: int
    n_identical: int
    n_steps_compared: int
    n_interventions: int
    noise: float
    divergences: tuple[Divergence, ...]

    @property
    def unexplained(self) -> tuple[Divergence, ...]:
        """Divergences wider than the noise: there must be none."""
        # Written so that a NaN counts.
        return tuple(item for item in self.divergences if not item.gap <= 2 * self.noise)


def compare_lazy_with_eager(
    requests: Iterable[Request],
    lazy: Session,
    eager: Session,
    policy: GuardPolicy,
    *,
    progress: _Progress = lambda _: None,
) -> RerankEquality:
    """Ask every request in both sessions (temperature 0) and compare step by step."""
    n_prompts = n_identical = n_steps = n_interventions = 0
    noise = 0.0
    divergences: list[Divergence] = []
    for request in requests:
        lazy_steps, eager_steps = _steps(lazy, request), _steps(eager, request)
        n_prompts += 1
        n_interventions += sum(not step.accepted for step in lazy_steps)
        risk = 0.0
        for one, other in zip(lazy_steps, eager_steps, strict=False):
            tilt = Tilt(policy.strength * (1.0 + policy.risk_gain * risk), policy.threshold)
            if one.token_id != other.token_id:
                divergences.append(Divergence(request.id, one.step, _gap(other, one, tilt)))
                break
            # Not max(), which may drop a NaN.
            noise = float(np.maximum(noise, abs(_value(one, tilt) - _value(other, tilt))))
            n_steps += 1
            risk = other.risk or 0.0
        else:
            if len(lazy_steps) == len(eager_steps):
                n_identical += 1
            else:  # one refused where the other went on: no guarded value explains that
                ended = min(len(lazy_steps), len(eager_steps))
                divergences.append(Divergence(request.id, ended, float("inf")))
        progress(n_prompts)
    return RerankEquality(
        n_prompts, n_identical, n_steps, n_interventions, noise, tuple(divergences)
    )


def _steps(session: Session, request: Request) -> list[Step]:
    session.reset()
    return [event for event in session.ask(request.text) if isinstance(event, Step)]


def _value(step: Step, tilt: Tilt) -> float:
    return _guarded(step.logprob, step.score or 0.0, tilt)


def _gap(eager: Step, lazy: Step, tilt: Tilt) -> float:
    """How far apart eager saw its own choice and lazy's.

    One that eager never saw: how far lazy's is from the edge of what the sampler let through.
    """
    for candidate in eager.candidates:
        if candidate.token_id == lazy.token_id:
            return abs(_value(eager, tilt) - _guarded(candidate.logprob, candidate.score, tilt))
    edge = min((candidate.logprob for candidate in eager.candidates), default=float("inf"))
    return abs(edge - lazy.logprob)


def _guarded(logprob: float, score: float, tilt: Tilt) -> float:
    return logprob - tilt.strength * max(0.0, score - tilt.threshold)
