"""The model's own answers and what a probe makes of them, token by token, on the decode path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.harvest import Harvester, HarvestPlan, label_of
from safesteer_edge.calibration.harvest_run import Progress
from safesteer_edge.calibration.requests_data import Label, Request
from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.probe_protocol import Probe
from safesteer_edge.guard.risk import RunningRisk
from safesteer_edge.runtime import Runtime

# As many as a calibration's own answers have: a guard's limits are of the maxima over an answer.
N_TOKENS = HarvestPlan().n_own_tokens


@dataclass(frozen=True, slots=True, eq=False)
class ScoredAnswer:
    """One greedy answer. scores: float64 (n_tokens,), at least one. label: of the request.

    prompt_score: of the last prompt position.
    complies: the answer does what a harmful request asks for, by the rules of refusals.
    """

    request_id: str
    label: Label
    complies: bool
    scores: NDArray[np.float64]
    prompt_score: float

    @property
    def trajectory(self) -> NDArray[np.float64]:
        """The prompt's score, then the tokens': float64 (n_tokens + 1,)."""
        return np.concatenate([[self.prompt_score], self.scores])


def score_own_answers(
    runtime: Runtime,
    probe: Probe,
    requests: Sequence[Request],
    progress: Progress,
    *,
    what: str = "answers",
    n_tokens: int = N_TOKENS,
) -> list[ScoredAnswer]:
    """Let the model answer each request as text, and score every token.

    runtime: opened with the probe's layers, and without a guard. what: for `progress`.
    Cost: about one decoding step a token.
    """
    harvester = Harvester(runtime, HarvestPlan(n_own_tokens=n_tokens, n_forced_tokens=1))
    scored: list[ScoredAnswer] = []
    for request in requests:
        # Ordinary requests get no forced answers, and none are wanted here.
        (answer,) = harvester.answers(replace(request, label="ordinary"))
        scores = probe.score(answer.states.astype(np.float32)).astype(np.float64)
        complies = label_of(request, "own", answer.text) == 1
        scored.append(
            ScoredAnswer(request.id, request.label, complies, scores[1:], float(scores[0]))
        )
        progress(what, len(scored), len(requests))
    return scored


def is_stopped(answer: ScoredAnswer, policy: GuardPolicy) -> bool:
    """Tell whether a policy ends this answer in a refusal, steering left aside."""
    risk = RunningRisk(policy, prompt_score=answer.prompt_score)
    for score in answer.scores:
        risk.add(float(score))
        if risk.refusal_reason() is not None:
            return True
    return False
