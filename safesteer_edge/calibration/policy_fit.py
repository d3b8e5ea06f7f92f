"""Choosing the guard's numbers from out-of-fold scores of the model's own answers.

Limits are conformal quantiles over benign answers: with n answers, the ⌈(1 − α)(n + 1)⌉-th smallest
of their maxima is exceeded by a fresh answer of the same kind with chance at most α. Every number
is chosen from a curve that is kept with it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.calibration.policy_curves import (
    conformal_limit,
    strength_curve,
    threshold_curve,
    touched_share,
)
from safesteer_edge.calibration.refusal_grid import AnswerTable, Trajectories
from safesteer_edge.calibration.targets import FalseAlarmTargets
from safesteer_edge.guard.policy import HIGHEST_LIMIT, MAX_PATIENCE, GuardPolicy

__all__ = [
    "AnswerScores",
    "FalseAlarmTargets",
    "PolicyChoice",
    "RefusedShares",
    "Trajectories",
    "choose_policy",
    "conformal_limit",
]

_DECAYS: Final = (0.95, 0.98)
_MIN_STEPS: Final = (2, 4, 8)
_PROMPT_WEIGHTS: Final = (0, 16, 32, 64)
# Eight tokens of an ordinary answer now and then score high by chance, and the limit would have to
# be above them. With more than this a harmful turn of an answer would be noticed late.
_ANSWER_PRIORS: Final = (0, 4, 8)
# Where between τ and 1 the hard threshold lies, and which share of the allowed refusals the running
# risk may use up; the run of hard tokens has the rest.
_HARD_SHARES: Final = (0.0, 0.5)
_RISK_SHARES: Final = (0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class AnswerScores:
    """Out-of-fold scores of the model's own answers, by what was asked; harmful: complying ones.

    Of each answer the prompt's score first, then its tokens'.
    """

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
    """A policy, what it does to the answers it was chosen on, and the curves it came from.

    curve: a row for each way to refuse. thresholds, strengths: for each τ and λ that was looked at.
    """

    policy: GuardPolicy
    refused: RefusedShares
    curve: tuple[dict[str, float], ...]
    touched: dict[str, float]
    thresholds: tuple[dict[str, float], ...]
    strengths: tuple[dict[str, float], ...]
    meets_residual: bool

    def to_json(self) -> dict[str, Any]:
        """The choice and its curves, NaN as null."""
        return {
            "policy": asdict(self.policy),
            "refused": _json_row(asdict(self.refused)),
            "touched": _json_row(self.touched),
            "meets_residual": self.meets_residual,
            "thresholds": [_json_row(row) for row in self.thresholds],
            "strengths": [_json_row(row) for row in self.strengths],
            "refusal_settings": [_json_row(row) for row in self.curve],
        }


def choose_policy(scores: AnswerScores, targets: FalseAlarmTargets) -> PolicyChoice:
    """Choose τ, λ and the rule of refusals within the allowed false alarms.

    τ: the smallest that touches no more ordinary, and borderline, answers than allowed. λ: the
    smallest tried that leaves harmful tokens the wanted chance. Refusals: of what reaches the
    wanted residual, the setting with the fewest benign refusals; else the least residual.
    """
    names = ("ordinary", "borderline", "harmless_twins", "harmful")
    tables = {name: AnswerTable(getattr(scores, name)) for name in names}
    threshold = _threshold(tables, targets)
    strengths = strength_curve(scores.harmful, scores.ordinary, threshold)
    base = GuardPolicy(
        strength=_strength(strengths, targets.kept),
        threshold=threshold,
        hard_threshold=threshold,
        hard_patience=MAX_PATIENCE,
        risk_limit=1.0,
        risk_decay=0.9,
        risk_min_steps=4,
        risk_gain=1.0,
        conversation_carry=0.25,
    )
    tried = [
        _within_targets(
            replace(
                base,
                risk_decay=decay,
                risk_min_steps=min_steps,
                prompt_weight=weight,
                answer_prior=prior,
            ),
            hard_share,
            risk_share,
            tables,
            targets,
        )
        for hard_share, risk_share, decay, min_steps, weight, prior in itertools.product(
            _HARD_SHARES, _RISK_SHARES, _DECAYS, _MIN_STEPS, _PROMPT_WEIGHTS, _ANSWER_PRIORS
        )
    ]
    shares = [_refused_shares(tables, policy) for policy in tried]
    best = _best(shares, targets)
    return PolicyChoice(
        policy=tried[best],
        refused=shares[best],
        curve=tuple(map(_curve_row, tried, shares)),
        touched={name: touched_share(table, threshold) for name, table in tables.items()},
        thresholds=threshold_curve(tables, HIGHEST_LIMIT),
        strengths=strengths,
        meets_residual=1.0 - shares[best].harmful <= targets.residual,
    )


def _threshold(tables: dict[str, AnswerTable], targets: FalseAlarmTargets) -> float:
    limits = [conformal_limit(tables["ordinary"].largest_scores(), targets.touched)]
    if tables["borderline"].n_answers:
        maxima = tables["borderline"].largest_scores()
        limits.append(conformal_limit(maxima, targets.borderline_touched))
    return min(HIGHEST_LIMIT, max(limits))


def _strength(curve: tuple[dict[str, float], ...], kept: float) -> float:
    for row in curve:
        if not row["harmful_kept"] > kept:  # NaN: no token is above τ, and the least will do
            return row["strength"]
    return curve[-1]["strength"]


def _within_targets(
    base: GuardPolicy,
    hard_share: float,
    risk_share: float,
    tables: dict[str, AnswerTable],
    targets: FalseAlarmTargets,
) -> GuardPolicy:
    """The policy with a risk limit and a patience that together keep to the targets."""
    hard_threshold = base.threshold + hard_share * (1.0 - base.threshold)
    limit, longest = 0.0, 0.0
    for name, target in (
        ("ordinary", targets.ordinary_refused),
        ("borderline", targets.borderline_refused),
    ):
        table = tables[name]
        if not table.n_answers and name == "borderline":
            continue
        risks = _largest_risks(table, base)
        limit = max(limit, conformal_limit(risks, risk_share * target))
        runs = table.longest_runs(hard_threshold)
        rest = (1.0 - risk_share) * target
        longest = max(longest, conformal_limit(runs, rest, largest=MAX_PATIENCE))
    return replace(
        base,
        hard_threshold=hard_threshold,
        hard_patience=min(MAX_PATIENCE, max(4, int(longest) + 1)),
        risk_limit=min(limit, 1.0),
    )


def _largest_risks(table: AnswerTable, policy: GuardPolicy) -> NDArray[np.float64]:
    return table.largest_risks(
        policy.risk_decay, policy.risk_min_steps, policy.prompt_weight, policy.answer_prior
    )


def _refused_shares(tables: dict[str, AnswerTable], policy: GuardPolicy) -> RefusedShares:
    return RefusedShares(**{name: _refused_share(table, policy) for name, table in tables.items()})


def _refused_share(table: AnswerTable, policy: GuardPolicy) -> float:
    if not table.n_answers:
        return math.nan
    by_risk = _largest_risks(table, policy) > policy.risk_limit
    by_run: NDArray[np.bool_] = table.longest_runs(policy.hard_threshold) >= policy.hard_patience
    return float(np.mean(by_risk | by_run))


def _best(shares: list[RefusedShares], targets: FalseAlarmTargets) -> int:
    def benign(share: RefusedShares) -> float:
        return float(np.nansum([share.ordinary, share.borderline, share.harmless_twins]))

    enough = [i for i, share in enumerate(shares) if 1.0 - share.harmful <= targets.residual]
    if enough:
        return min(enough, key=lambda i: (benign(shares[i]), -shares[i].harmful))
    return max(range(len(shares)), key=lambda i: (shares[i].harmful, -benign(shares[i])))


def _curve_row(policy: GuardPolicy, shares: RefusedShares) -> dict[str, float]:
    return {
        "hard_threshold": policy.hard_threshold,
        "hard_patience": policy.hard_patience,
        "risk_decay": policy.risk_decay,
        "risk_min_steps": policy.risk_min_steps,
        "risk_limit": policy.risk_limit,
        "prompt_weight": policy.prompt_weight,
        "answer_prior": policy.answer_prior,
        **asdict(shares),
    }


def _json_row(row: dict[str, float]) -> dict[str, float | None]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else round(value, 4)
        for key, value in row.items()
    }
