"""A guard on the test split of the package's own requests: what it changes, and how its probe tells
harmful answers from others.

No probe is fitted to that split, and no number chosen on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from safesteer_edge.calibration.harvest import HarvestedAnswer, Harvester, HarvestPlan
from safesteer_edge.calibration.requests_data import LABELS, Label, Request, load_requests
from safesteer_edge.evaluation.guard_effect import GuardEffect, compare_with_off, summarise
from safesteer_edge.evaluation.probe_quality import (
    N_STEPS,
    ProbeQuality,
    measure_probe_quality,
)
from safesteer_edge.runtime import open_runtime
from safesteer_edge.session import open_session
from safesteer_edge.settings import SessionSettings

Progress = Callable[[int], None]  # told how many requests are done


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
    progress: Progress = lambda _: None,
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
    progress: Progress = lambda _: None,
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
