"""The guard's numbers, as a bundle stores them, and how a user may tighten them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from safesteer_edge.errors import SettingsError

GuardMode = Literal["steer", "refuse", "monitor", "off"]
RerankName = Literal["lazy", "eager", "paper"]
GUARD_MODES: tuple[GuardMode, ...] = ("steer", "refuse", "monitor", "off")
RERANK_NAMES: tuple[RerankName, ...] = ("lazy", "eager", "paper")
MAX_PATIENCE: Final = 1024  # tokens: as good as never
HIGHEST_LIMIT: Final = 0.999  # as good as no score, and no running risk, is above it
# A certainly harmful candidate then keeps half of its chance: steering less than that is none.
_LEAST_NATS: Final = math.log(2.0)


MAX_OPENINGS: Final = 8  # that join the candidates of one step
MAX_LOOK_AHEAD: Final = 16  # tokens
# Beginnings that are looked ahead from; sixteen found one more refusal in 40, in twice the time.
N_LOOKED_AHEAD: Final = 8
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "strength": (1e-6, 1e6),
    "threshold": (0.0, 1.0),
    "hard_threshold": (0.0, 1.0),
    "hard_patience": (1, MAX_PATIENCE),
    "risk_limit": (0.0, 1.0),
    "risk_decay": (0.0, 0.9999),
    "risk_min_steps": (1, MAX_PATIENCE),
    "risk_gain": (0.0, 1e3),
    "conversation_carry": (0.0, 1.0),
    "prompt_weight": (0, 1024),
    "prompt_limit": (0.0, 1.0),
    "answer_prior": (0, 1024),
    "steer_from": (0.0, 1.0),
    "opening_share": (0.0, 0.999),
    "retries": (0, 8),
    "refuses": (0, 1),
    "look_ahead": (0, MAX_LOOK_AHEAD),
    "look_ahead_limit": (0.0, 1.0),
}


def check_policy_number(name: str, value: float | None) -> None:
    """Raise SettingsError for a number that no policy has; None: the bundle's own."""
    low, high = _BOUNDS[name]
    if value is not None and not low <= value <= high:  # false for NaN as well
        raise SettingsError(f"guard {name} is {value!r}; expected {low} to {high}")


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """When the guard acts, and how hard. Scores and risk are in [0, 1].

    strength: λ of the tilt exp(−λ·max(0, score − τ)), > 0.
    threshold: τ; a score at or below it is left alone.
    hard_threshold, hard_patience: a turn is refused after this many emitted tokens in a row with a
        score above hard_threshold: steering found nothing better.
    risk_limit: a turn is refused when the running risk exceeds it, after risk_min_steps tokens.
    risk_decay: the running risk is the mean score until 1 / (1 − decay) tokens, then a moving one.
    risk_gain: λ is multiplied by 1 + risk_gain · risk, so that steering hardens as risk gathers.
    conversation_carry: the share of a turn's final risk that the next turn starts with.
    prompt_weight: the prompt's own score counts as so many tokens of the running risk, where that
        makes it higher: a prompt that looks harmless never excuses what is said. 0: not at all.
    answer_prior: the mean of what is said begins with so many tokens of score 0, or of what the
        conversation carries: an answer's first tokens tell little by themselves.
    steer_from: λ is 0 up to this risk and whole at the risk limit, so that calm text is untouched;
        None: it is whole at any risk, as in bundles of schema 1.
    retries: how often an answer that would be refused is taken back and steered anew instead.
    opening_share: m, the share that safe openings have of the candidates where it begins anew.
    prompt_limit: a prompt with a score above it ends the answer as a risk above risk_limit does, at
        its first token, and λ is whole from there on. 1: none does.
    look_ahead: where an answer begins anew, its likeliest first tokens are followed for so many
        tokens, and weighed by what they lead to. 0: they are not.
    look_ahead_limit: one of them is taken if it scores no higher; else openings join, as without.
    refuses: False: after the retries it goes on, unrefused. For ablations; no bundle has it.

    Raises SettingsError for a value out of range.
    """

    strength: float
    threshold: float
    hard_threshold: float
    hard_patience: int
    risk_limit: float
    risk_decay: float
    risk_min_steps: int
    risk_gain: float
    conversation_carry: float
    prompt_weight: int = 0
    answer_prior: int = 0
    steer_from: float | None = None
    retries: int = 0
    opening_share: float = 0.9
    refuses: bool = True
    prompt_limit: float = 1.0
    look_ahead: int = 0
    look_ahead_limit: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            check_policy_number(field.name, getattr(self, field.name))
        if self.hard_threshold < self.threshold:
            raise SettingsError(
                f"guard hard_threshold {self.hard_threshold!r} is below threshold "
                f"{self.threshold!r}; expected at least as large"
            )
        if self.steer_from is not None and not self.steer_from < self.risk_limit:
            raise SettingsError(
                f"guard steer_from {self.steer_from!r} is not below risk_limit {self.risk_limit!r}"
            )

    @property
    def alert_threshold(self) -> float:
        """The score that is high at any risk: τ, or the hard one where τ counts in raised risk."""
        return self.threshold if self.steer_from is None else self.hard_threshold

    @property
    def can_steer(self) -> bool:
        """Whether the worst score, at the worst risk, costs a candidate half of its chance."""
        nats = self.strength * (1.0 + self.risk_gain) * (1.0 - self.threshold)
        return self.threshold <= HIGHEST_LIMIT and nats >= _LEAST_NATS

    @property
    def can_refuse(self) -> bool:
        """Whether the worst scores end an answer, by the running risk or by a run of tokens."""
        limit = min(self.risk_limit, self.prompt_limit)
        by_risk = limit <= HIGHEST_LIMIT and self.risk_min_steps < MAX_PATIENCE
        by_run = self.hard_threshold <= HIGHEST_LIMIT and self.hard_patience < MAX_PATIENCE
        return by_risk or by_run

    def tightened(self, *, strength: float | None, threshold: float | None) -> GuardPolicy:
        """This policy with a larger strength or a smaller threshold, which then holds at any risk.

        Raises SettingsError if either would weaken it: λ and τ were calibrated for this model, and
        weaker guarding has names of its own (`monitor`, `off`) that the user interface shows.
        """
        if strength is not None and strength < self.strength:
            raise SettingsError(
                f"strength {strength!r} is below the bundle's {self.strength!r}; give a larger "
                "one, or ask for guard mode 'monitor' or 'off' by name"
            )
        if threshold is not None and threshold > self.threshold:
            raise SettingsError(
                f"threshold {threshold!r} is above the bundle's {self.threshold!r}; give a smaller "
                "one, or ask for guard mode 'monitor' or 'off' by name"
            )
        return replace(
            self,
            strength=self.strength if strength is None else strength,
            threshold=self.threshold if threshold is None else threshold,
            steer_from=self.steer_from if threshold is None else None,
        )


# -- settings of the sampler -----------------------------------------------------------------------

MAX_TOP_K = 64
MAX_SEED = 2**32 - 2  # 2³²−1 is LLAMA_DEFAULT_SEED (llama.h): another seed each time
_SAMPLING_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.0, 10.0),
    "top_k": (1, MAX_TOP_K),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 10.0),
    "repeat_last_n": (0, 65536),
    "frequency_penalty": (-10.0, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "seed": (0, MAX_SEED),
}


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """llama.cpp's sampler chain. The top-k are the candidates that the guard re-ranks.

    temperature 0 is greedy. seed: 0 … 2³²−2. repeat_penalty 1, frequency and presence penalty 0
    switch the penalties off. Raises SettingsError for a value out of range.
    """

    temperature: float = 0.3
    top_k: int = 16
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _SAMPLING_BOUNDS.items():
            value: float = getattr(self, name)
            if not low <= value <= high:  # false for NaN as well
                raise SettingsError(f"{name} is {value!r}; expected {low} to {high}")

    @property
    def has_penalties(self) -> bool:
        """True if any penalty changes the logits."""
        return (
            self.repeat_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )
