"""Choosing the guard's numbers from out-of-fold scores of the model's own answers.

Limits are conformal quantiles over benign answers: with n answers, the ⌈(1 − α)(n + 1)⌉-th smallest
of their maxima is exceeded by a fresh answer of the same kind with chance at most α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.guard.policy import GuardPolicy
from safesteer_edge.guard.risk import RunningRisk

# A tilt of this many nats at score 1 makes a candidate about 3,000 times less likely.
TILT_NATS_AT_FULL_SCORE = 8.0
_DECAYS = (0.85, 0.9, 0.95, 0.97, 0.98)
_MIN_STEPS = (4, 6, 8, 12)
MAX_PATIENCE = 1024  # GuardPolicy's: as good as never

Trajectories = Sequence[NDArray[np.float64]]  # scores of one answer's tokens, float64 (n_tokens,)


@dataclass(frozen=True, slots=True)
class FalseAlarmTargets:
    """Chances that are allowed.

    touched: of any score above τ in an ordinary answer. ordinary_refused, borderline_refused: of a
    running risk above the limit in an answer to such a request, and again of a run of hard tokens
    (the two rules seldom refuse different answers).
    """

    touched: float = 0.02
    ordinary_refused: float = 0.01
    borderline_refused: float = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class AnswerScores:
    """Out-of-fold scores of the model's own answers, by what was asked; harmful: complying ones."""

    ordinary: Trajectories
    borderline: Trajectories
    harmless_twins: Trajectories
    harmful: Trajectories


@dataclass(frozen=True, slots=True)
class RefusedShares:
    """Share of answers that a policy ends in a refusal, steering left aside."""

    ordinary: float
    borderline: float
    harmless_twins: float
    harmful: float


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy, what it does to the answers it was chosen on, and the curve of what was tried."""

    policy: GuardPolicy
    refused: RefusedShares
    curve: tuple[dict[str, float], ...]


def choose_policy(scores: AnswerScores, targets: FalseAlarmTargets) -> PolicyChoice:
    """Choose τ, λ and the refusal rule: the risk setting that refuses most harmful answers."""
    threshold = min(0.999, conformal_limit([row.max() for row in scores.ordinary], targets.touched))
    base = GuardPolicy(
        strength=TILT_NATS_AT_FULL_SCORE / (1.0 - threshold),
        threshold=threshold,
        hard_threshold=threshold,
        hard_patience=_patience(scores, threshold, targets),
        risk_limit=1.0,
        risk_decay=0.9,
        risk_min_steps=4,
        risk_gain=1.0,
        conversation_carry=0.25,
    )
    tried = [
        _with_limit(base, decay, min_steps, scores, targets)
        for decay in _DECAYS
        for min_steps in _MIN_STEPS
    ]
    shares = [_refused_shares(scores, policy) for policy in tried]
    best = max(range(len(tried)), key=lambda index: shares[index].harmful)
    curve = tuple(
        {
            "risk_decay": policy.risk_decay,
            "risk_min_steps": policy.risk_min_steps,
            "risk_limit": policy.risk_limit,
            **asdict(share),
        }
        for policy, share in zip(tried, shares, strict=True)
    )
    return PolicyChoice(tried[best], shares[best], curve)


def conformal_limit(maxima: Sequence[float], alpha: float, *, largest: float = 1.0) -> float:
    """The smallest limit that a fresh value exceeds with chance at most alpha.

    largest: what no value exceeds: the answer where there are too few values to promise less.
    """
    rank = math.ceil((1.0 - alpha) * (len(maxima) + 1))
    return float(sorted(maxima)[rank - 1]) if rank <= len(maxima) else largest


def _patience(scores: AnswerScores, threshold: float, targets: FalseAlarmTargets) -> int:
    """One more than the longest run above τ that benign answers are allowed to have."""
    runs = [_longest_run(row > threshold) for row in scores.ordinary]
    borderline_runs = [_longest_run(row > threshold) for row in scores.borderline]
    longest = conformal_limit(runs, targets.ordinary_refused, largest=MAX_PATIENCE)
    if borderline_runs:
        at_borderline = conformal_limit(
            borderline_runs, targets.borderline_refused, largest=MAX_PATIENCE
        )
        longest = max(longest, at_borderline)
    return min(MAX_PATIENCE, max(4, int(longest) + 1))


def _longest_run(flags: NDArray[np.bool_]) -> int:
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


def _with_limit(
    base: GuardPolicy,
    decay: float,
    min_steps: int,
    scores: AnswerScores,
    targets: FalseAlarmTargets,
) -> GuardPolicy:
    unlimited = replace(base, risk_decay=decay, risk_min_steps=min_steps)
    limit = conformal_limit(
        [_max_risk(row, unlimited) for row in scores.ordinary], targets.ordinary_refused
    )
    if scores.borderline:
        borderline = [_max_risk(row, unlimited) for row in scores.borderline]
        limit = max(limit, conformal_limit(borderline, targets.borderline_refused))
    return replace(unlimited, risk_limit=min(limit, 1.0))


def _max_risk(row: NDArray[np.float64], policy: GuardPolicy) -> float:
    risk = RunningRisk(policy)
    largest = 0.0
    for n_done, score in enumerate(row, start=1):
        risk.add(float(score))
        if n_done >= policy.risk_min_steps:
            largest = max(largest, risk.value)
    return largest


def _refused_shares(scores: AnswerScores, policy: GuardPolicy) -> RefusedShares:
    return RefusedShares(
        ordinary=_refused_share(scores.ordinary, policy),
        borderline=_refused_share(scores.borderline, policy),
        harmless_twins=_refused_share(scores.harmless_twins, policy),
        harmful=_refused_share(scores.harmful, policy),
    )


def _refused_share(rows: Trajectories, policy: GuardPolicy) -> float:
    return float(np.mean([_is_refused(row, policy) for row in rows])) if len(rows) else math.nan


def _is_refused(row: NDArray[np.float64], policy: GuardPolicy) -> bool:
    risk = RunningRisk(policy)
    for score in row:
        risk.add(float(score))
        if risk.refusal_reason() is not None:
            return True
    return False
