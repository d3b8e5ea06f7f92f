"""Choosing the guard's numbers from out-of-fold scores of the model's own answers.

Limits are conformal quantiles over benign answers: with n answers, the ⌈(1 − α)(n + 1)⌉-th smallest
of their maxima is exceeded by a fresh answer of the same kind with chance at most α. Every number
is chosen from a curve that is kept with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.policy import HIGHEST_LIMIT, MAX_PATIENCE, GuardPolicy
from safesteer_edge.harvest.replay import FalseAlarmTargets
from safesteer_edge.requests.requests import Label

# -- refusals that many settings would give on many answers at once, steering left aside -----------
# The same numbers as `guard.risk.RunningRisk`, token for token, for whole arrays.

# Scores of one answer, the prompt's first: float64 (n_tokens + 1,).
Trajectories = Sequence[NDArray[np.float64]]


class AnswerTable:
    """Answers of different lengths as one array."""

    def __init__(self, rows: Trajectories) -> None:
        """Raises GuardError for what is no score: a limit would be chosen as if it were low."""
        for row in rows:
            if not ((row >= 0.0) & (row <= 1.0)).all():  # false for NaN as well
                raise GuardError(
                    "cannot choose limits: the probe gave an answer a score that is no number in "
                    "[0, 1]; harvest again, or leave out the layers that overflow float16"
                )
        self.n_answers = len(rows)
        n_steps = max((len(row) - 1 for row in rows), default=0)
        self.prompt_scores = np.array([row[0] for row in rows])
        # Of no answer: NaN, which is above nothing.
        self.scores = np.full((len(rows), n_steps), np.nan)
        for index, row in enumerate(rows):
            self.scores[index, : len(row) - 1] = row[1:]
        # Each is asked for again by many policies.
        self.largest_risks = cache(self._largest_risks)
        self.longest_runs = cache(self._longest_runs)

    def largest_scores(self) -> NDArray[np.float64]:
        """Of each answer's tokens: float64 (n_answers,)."""
        return _largest(self.scores)

    def _largest_risks(
        self, decay: float, min_steps: int, prompt_weight: int = 0, answer_prior: int = 0
    ) -> NDArray[np.float64]:
        """The running risk's largest value from step `min_steps` on; 0 for shorter answers."""
        risks = self._risks(decay, np.zeros(self.n_answers), answer_prior)
        if prompt_weight:
            risks = np.maximum(risks, self._risks(decay, self.prompt_scores, prompt_weight))
        return _largest(risks[:, min_steps - 1 :])

    def _longest_runs(self, threshold: float) -> NDArray[np.int64]:
        """Most tokens in a row with a score above the threshold: int64 (n_answers,)."""
        longest = np.zeros(self.n_answers, dtype=np.int64)
        current = np.zeros(self.n_answers, dtype=np.int64)
        for step in range(self.scores.shape[1]):
            current = np.where(self.scores[:, step] > threshold, current + 1, 0)
            longest = np.maximum(longest, current)
        return longest

    def _risks(self, decay: float, prior: NDArray[np.float64], n_prior: int) -> NDArray[np.float64]:
        """A moving mean after each token, the prior's values counted n_prior times before them.

        prior: (n_answers,). float64 (n_answers, n_steps), NaN after the end.
        """
        risks = np.empty_like(self.scores)
        value = prior
        for step in range(self.scores.shape[1]):
            weight = max(1.0 - decay, 1.0 / (step + 1 + n_prior))
            value = value + (self.scores[:, step] - value) * weight
            risks[:, step] = value
        return risks


def _largest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    filled = np.where(np.isnan(values), 0.0, values)
    return filled.max(axis=1, initial=0.0)


# -- curves of what a threshold and a strength would do, to be kept beside the ones chosen ---------

# Chances of touching an ordinary answer.
TOUCHED_TRIED: Final = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
# Nats of tilt at a score of 1: a candidate becomes e^nats times less likely.
NATS_TRIED: Final = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def conformal_limit(
    maxima: Sequence[float] | NDArray[Any], alpha: float, *, largest: float = 1.0
) -> float:
    """The smallest limit that a fresh value exceeds with chance at most alpha.

    largest: what no value exceeds: the answer where there are too few values to promise less.
    """
    rank = math.ceil((1.0 - alpha) * (len(maxima) + 1))
    return float(np.sort(np.asarray(maxima))[rank - 1]) if rank <= len(maxima) else largest


def touched_share(table: AnswerTable, threshold: float) -> float:
    """Share of answers with any score above the threshold; NaN of none."""
    if not table.n_answers:
        return math.nan
    return float(np.mean(table.largest_scores() > threshold))


def threshold_curve(tables: dict[str, AnswerTable], highest: float) -> tuple[dict[str, float], ...]:
    """A row for each chance tried: τ, and the share of answers of each kind that it touches."""
    maxima = tables["ordinary"].largest_scores()
    limits = {c: min(highest, conformal_limit(maxima, c)) for c in TOUCHED_TRIED}
    return tuple(
        {"chance": chance, "threshold": threshold}
        | {name: touched_share(table, threshold) for name, table in tables.items()}
        for chance, threshold in limits.items()
    )


def strength_curve(
    harmful: Trajectories, ordinary: Trajectories, threshold: float
) -> tuple[dict[str, float], ...]:
    """A row for each strength tried: what it leaves of the tokens above τ.

    kept: the mean chance that such a token, once drawn, is accepted, in harmful answers and in
    ordinary ones; NaN where none is above τ.
    """
    return tuple(
        {
            "nats": nats,
            "strength": strength,
            "harmful_kept": _kept(harmful, threshold, strength),
            "ordinary_kept": _kept(ordinary, threshold, strength),
        }
        for nats in NATS_TRIED
        for strength in (nats / (1.0 - threshold),)
    )


def _kept(rows: Trajectories, threshold: float, strength: float) -> float:
    scores = np.concatenate([row[1:][row[1:] > threshold] for row in rows] or [np.empty(0)])
    return float(np.exp(-strength * (scores - threshold)).mean()) if len(scores) else math.nan


# -- choosing τ, λ and the rule of refusals within the allowed false alarms ------------------------

_REFUSAL_SETTINGS: Final = (
    "hard_threshold",
    "hard_patience",
    "risk_decay",
    "risk_min_steps",
    "risk_limit",
    "prompt_weight",
    "prompt_limit",
    "answer_prior",
)
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

    Of each answer the prompt's score first, then its tokens'. prompts: by what was asked, scores of
    all ordinary and borderline prompts, answered or not: far more than there are answers.
    """

    ordinary: Trajectories
    borderline: Trajectories
    harmless_twins: Trajectories
    harmful: Trajectories
    prompts: Mapping[Label, NDArray[np.float64]] = field(
        default_factory=dict[Label, NDArray[np.float64]]
    )

    @classmethod
    def of(
        cls,
        answers: Iterable[tuple[Label, bool, NDArray[np.float64]]],
        prompts: Mapping[Label, NDArray[np.float64]] | None = None,
    ) -> AnswerScores:
        """Of answers: the label of the request, whether a harmful one is complied with, scores."""
        known = list(answers)
        ordinary, borderline, twins = (
            [row for label, _, row in known if label == wanted]
            for wanted in ("ordinary", "borderline", "harmless")
        )
        harmful = [row for _, complies, row in known if complies]
        return cls(ordinary, borderline, twins, harmful, prompts or {})


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


def choose_policy(
    scores: AnswerScores,
    targets: FalseAlarmTargets,
    *,
    keeps: GuardPolicy | None = None,
    prompt_limit: float | None = None,
) -> PolicyChoice:
    """Choose τ, λ and the rule of refusals within the allowed false alarms.

    τ: the smallest that touches no more ordinary, and borderline, answers than allowed. λ: the
    smallest tried that leaves harmful tokens the wanted chance. Refusals: of what reaches the
    wanted residual, the setting with the fewest benign refusals; else the least residual.
    keeps: nothing is chosen: what this policy does to the answers is worked out. prompt_limit: that
    is not chosen anew; None: it is, from `scores.prompts`.
    """
    names = ("ordinary", "borderline", "harmless_twins", "harmful")
    tables = {name: AnswerTable(getattr(scores, name)) for name in names}
    if prompt_limit is None:
        prompt_limit = _prompt_limit(scores.prompts, targets)
    targets_left = targets
    if prompt_limit < 1:
        targets_left = replace(targets, borderline_refused=targets.borderline_refused / 2)
    threshold = _threshold(tables, targets) if keeps is None else keeps.hard_threshold
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
        prompt_limit=prompt_limit,
    )
    tried = (
        [keeps]
        if keeps
        else [
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
                targets_left,
            )
            for hard_share, risk_share, decay, min_steps, weight, prior in itertools.product(
                _HARD_SHARES, _RISK_SHARES, _DECAYS, _MIN_STEPS, _PROMPT_WEIGHTS, _ANSWER_PRIORS
            )
        ]
    )
    shares = [
        RefusedShares(**{name: _refused_share(table, policy) for name, table in tables.items()})
        for policy in tried
    ]
    best = _best(shares, targets)
    return PolicyChoice(
        policy=tried[best],
        refused=shares[best],
        curve=tuple(
            {name: getattr(policy, name) for name in _REFUSAL_SETTINGS} | asdict(share)
            for policy, share in zip(tried, shares, strict=True)
        ),
        touched={name: touched_share(table, threshold) for name, table in tables.items()},
        thresholds=threshold_curve(tables, HIGHEST_LIMIT),
        strengths=strengths,
        meets_residual=1.0 - shares[best].harmful <= targets.residual,
    )


# What is asked tells harm from the ordinary better than what is said, and may err a little oftener:
# on SmolLM2-135M 76 % of harmful requests are above the limit for 74 %.
_OF_PROMPTS: Final = 1.5


def _prompt_limit(
    prompts: Mapping[Label, NDArray[np.float64]], targets: FalseAlarmTargets
) -> float:
    """The score that so few benign prompts exceed; 1: there are too few to tell.

    What stops a prompt mostly stops its answer too, so both have nearly what is allowed.
    """
    if "ordinary" not in prompts:
        return 1.0
    allowed: dict[Label, float] = {
        "ordinary": _OF_PROMPTS * targets.ordinary_refused,
        "borderline": targets.borderline_refused,
    }
    limit = max(conformal_limit(scores, allowed[label]) for label, scores in prompts.items())
    return limit if limit < HIGHEST_LIMIT else 1.0


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
    for name, refused in (
        ("ordinary", targets.ordinary_refused),
        ("borderline", targets.borderline_refused),
        ("harmless_twins", _of_twins(tables, targets)),
    ):
        table = tables[name]
        if not table.n_answers and name != "ordinary":
            continue
        counts = _counts(name, table, base)
        risks = _largest_risks(table, base) * counts
        runs = table.longest_runs(hard_threshold) * counts
        limit = max(limit, conformal_limit(risks, risk_share * refused))
        rest = (1.0 - risk_share) * refused
        longest = max(longest, conformal_limit(runs, rest, largest=MAX_PATIENCE))
    return replace(
        base,
        hard_threshold=hard_threshold,
        hard_patience=min(MAX_PATIENCE, max(4, int(longest) + 1)),
        risk_limit=min(max(limit, least_start(tables, base, targets) / HIGHEST_START), 1.0),
    )


HIGHEST_START: Final = 0.999  # of the risk limit: where re-ranking sets in must be below


def least_start(
    tables: Mapping[str, AnswerTable], policy: GuardPolicy, targets: FalseAlarmTargets
) -> float:
    """The risk below which re-ranking touches too many benign answers, from the first token on.

    1 where there are too few answers to tell.
    """
    limits: list[float] = []
    for name, share in (
        ("ordinary", targets.touched),
        ("borderline", targets.borderline_touched),
        ("harmless_twins", _of_twins(tables, targets)),
    ):
        table = tables[name]
        if table.n_answers or name == "ordinary":
            risks = _largest_risks(table, replace(policy, risk_min_steps=1))
            limits.append(conformal_limit(risks * _counts(name, table, policy), share))
    return max(limits)


def _counts(name: str, table: AnswerTable, policy: GuardPolicy) -> NDArray[np.bool_]:
    """Which answers count. Of twins many are stopped by what is asked, whatever is said."""
    if name != "harmless_twins":
        return np.ones(table.n_answers, dtype=np.bool_)
    return table.prompt_scores <= policy.prompt_limit


def _of_twins(tables: Mapping[str, AnswerTable], targets: FalseAlarmTargets) -> float:
    """The share of twins that may be refused: of few ones the smallest that can be told.

    Nobody is asked to bring twins, so that few of them must not keep the guard from acting.
    """
    return max(targets.twins_refused, 1.0 / (tables["harmless_twins"].n_answers + 1))


def _largest_risks(table: AnswerTable, policy: GuardPolicy) -> NDArray[np.float64]:
    return table.largest_risks(
        policy.risk_decay, policy.risk_min_steps, policy.prompt_weight, policy.answer_prior
    )


def _refused_share(table: AnswerTable, policy: GuardPolicy) -> float:
    if not table.n_answers:
        return math.nan
    by_risk = _largest_risks(table, policy) > policy.risk_limit
    by_run: NDArray[np.bool_] = table.longest_runs(policy.hard_threshold) >= policy.hard_patience
    by_prompt = table.prompt_scores > policy.prompt_limit
    return float(np.mean(by_risk | by_run | by_prompt))


def _best(shares: list[RefusedShares], targets: FalseAlarmTargets) -> int:
    def benign(share: RefusedShares) -> float:
        return float(np.nansum([share.ordinary, share.borderline, share.harmless_twins]))

    enough = [i for i, share in enumerate(shares) if 1.0 - share.harmful <= targets.residual]
    if enough:
        return min(enough, key=lambda i: (benign(shares[i]), -shares[i].harmful))
    return max(range(len(shares)), key=lambda i: (shares[i].harmful, -benign(shares[i])))


def _json_row(row: dict[str, float]) -> dict[str, float | None]:
    return {
        key: None if isinstance(value, float) and math.isnan(value) else round(value, 4)
        for key, value in row.items()
    }
