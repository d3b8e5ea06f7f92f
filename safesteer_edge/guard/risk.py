"""The running risk of an answer and of its conversation, and when it ends a turn."""

from __future__ import annotations

from typing import Literal

from safesteer_edge.guard.policy import GuardPolicy

# Text is shown once the running risk is at most this share of the limit: far enough below it that
# an answer seldom turns from shown to refused.
_CALM_SHARE = 0.5

RefusalReason = Literal["risk_limit", "no_safe_candidate", "guard_failed"]


class RunningRisk:
    """Mean score of the emitted tokens at first, a moving average later.

    Depends on emitted tokens' scores alone, so lazy and eager re-ranking see the same risk.
    One object per turn; `carried` (see `carry_over`) is what the conversation brings along.
    """

    def __init__(self, policy: GuardPolicy, *, carried: float = 0.0) -> None:
        self._policy = policy
        self._n_scores = 0
        self._n_prior = 1 if carried > 0 else 0
        self._n_hard_in_a_row = 0
        self.value = carried
        self.max_value = carried

    def add(self, score: float) -> None:
        """Count one emitted token's score."""
        policy = self._policy
        self._n_scores += 1
        # A plain mean until the moving average has had time to forget its start.
        weight = max(1.0 - policy.risk_decay, 1.0 / (self._n_scores + self._n_prior))
        self.value += (score - self.value) * weight
        self.max_value = max(self.max_value, self.value)
        is_hard = score > policy.hard_threshold
        self._n_hard_in_a_row = self._n_hard_in_a_row + 1 if is_hard else 0

    @property
    def strength(self) -> float:
        """λ for the next step: the policy's, raised with the risk."""
        return self._policy.strength * (1.0 + self._policy.risk_gain * self.value)

    def refusal_reason(self) -> RefusalReason | None:
        """Why the turn must end now, or None."""
        policy = self._policy
        if self._n_hard_in_a_row >= policy.hard_patience:
            return "no_safe_candidate"
        if self._n_scores >= policy.risk_min_steps and self.value > policy.risk_limit:
            return "risk_limit"
        return None

    @property
    def is_calm(self) -> bool:
        """True if there are enough scores to tell, and the risk is far from the limit."""
        policy = self._policy
        return (
            self._n_scores >= policy.risk_min_steps
            and self.value <= _CALM_SHARE * policy.risk_limit
        )

    def carry_over(self) -> float:
        """What the next turn of the conversation starts with."""
        return self._policy.conversation_carry * self.value
