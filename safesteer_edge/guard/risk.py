"""The running risk of an answer and of its conversation, and when it ends a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.policy import GuardPolicy

# Text is shown once the running risk is at most this share of the limit: far enough below it that
# an answer seldom turns from shown to refused.
_CALM_SHARE = 0.5

RefusalReason = Literal["risk_limit", "no_safe_candidate", "guard_failed"]


def is_score(value: float) -> bool:
    """Whether this can be a score or a risk: a number in [0, 1], and no NaN."""
    return 0.0 <= value <= 1.0


def require_score(what: str, value: float) -> None:
    """Raise GuardError unless this can be a score or a risk: NaN would pass every limit."""
    if not is_score(value):
        raise GuardError(f"{what} is {value!r}, not a number in [0, 1]: the guard cannot judge")


class RunningRisk:
    """Mean score of the emitted tokens at first, a moving average later.

    It begins with `answer_prior` tokens of what is carried, which is 0 in a first turn. The
    prompt's score counts in as `prompt_weight` tokens that came first, where that makes the risk
    higher; one above `prompt_limit` is an alarm whatever is said. Depends on the scores of the
    prompt and of emitted tokens alone, so lazy and eager re-ranking see the same risk.
    One object per turn; `carried` (see `carry_over`) is what the conversation brings along.
    """

    def __init__(
        self, policy: GuardPolicy, *, carried: float = 0.0, prompt_score: float | None = None
    ) -> None:
        """prompt_score: of the prompt; None where it is not known.

        Raises GuardError for what is no risk or score.
        """
        require_score("the risk carried from earlier turns", carried)
        if prompt_score is not None:
            require_score("the prompt's score", prompt_score)
        self._policy = policy
        self._carried = carried
        self._is_raised, self._alarmed_at = False, 0.0
        # Behind a prompt that asks nothing alarming one token tells enough to let it be seen.
        is_calm = prompt_score is not None and prompt_score <= _CALM_SHARE * policy.prompt_limit
        self._n_until_calm = 1 if is_calm else policy.risk_min_steps
        self._prompt_alarm = 0.0  # the prompt's score where that is above its limit
        if prompt_score is not None and prompt_score > policy.prompt_limit:
            self._prompt_alarm = prompt_score
        self._begin()
        self._asked: _MovingMean | None = None
        if prompt_score is not None and policy.prompt_weight > 0:
            self._asked = _MovingMean(policy.risk_decay, prompt_score, policy.prompt_weight)
        self.value = carried
        self.max_value = carried

    def _begin(self) -> None:
        self._n_scores = self._n_hard_in_a_row = 0
        n_prior = max(self._policy.answer_prior, 1 if self._carried > 0 else 0)
        self._said = _MovingMean(self._policy.risk_decay, self._carried, n_prior)

    def begin_again(self, kept_scores: Sequence[float]) -> None:
        """The answer was taken back to these tokens, and is steered from here on.

        λ is whole for the rest of it. What was asked has been acted on: from now on the answer is
        judged by what it says.
        """
        self._alarmed_at = max(self._alarmed_at, self.value)
        self._is_raised, self._asked, self._prompt_alarm = True, None, 0.0
        self._begin()
        self.value = self._carried
        for score in kept_scores:
            self.add(score)

    def add(self, score: float) -> None:
        """Count one emitted token's score. Raises GuardError for what is no score."""
        require_score("a token's score", score)
        self._n_scores += 1
        self.value = self._said.add(score)
        if self._asked is not None:
            self.value = max(self.value, self._asked.add(score))
        self.value = max(self.value, self._prompt_alarm)
        self.max_value = max(self.max_value, self.value)
        is_hard = score > self._policy.hard_threshold
        self._n_hard_in_a_row = self._n_hard_in_a_row + 1 if is_hard else 0

    @property
    def strength(self) -> float:
        """λ for the next step: from 0 at `steer_from` to the policy's at the limit, and beyond."""
        policy = self._policy
        share = 1.0
        if policy.steer_from is not None and not self._is_raised and not self._prompt_alarm:
            share = (self.value - policy.steer_from) / (policy.risk_limit - policy.steer_from)
        return policy.strength * min(1.0, max(0.0, share)) * (1.0 + policy.risk_gain * self.value)

    def refusal_reason(self) -> RefusalReason | None:
        """Why the turn must end now, or None."""
        policy = self._policy
        if self._n_hard_in_a_row >= policy.hard_patience:
            return "no_safe_candidate"
        if self._prompt_alarm > 0:  # at once: a short answer must not end before it
            return "risk_limit"
        if self._n_scores >= policy.risk_min_steps and self.value > policy.risk_limit:
            return "risk_limit"
        return None

    @property
    def is_calm(self) -> bool:
        """True if there are enough scores to tell, and the risk is far from the limit."""
        return (
            self._n_scores >= self._n_until_calm
            and not self._prompt_alarm
            and self.value <= _CALM_SHARE * self._policy.risk_limit
        )

    def carry_over(self) -> float:
        """What the next turn of the conversation starts with."""
        return self._policy.conversation_carry * self.of_conversation

    @property
    def of_conversation(self) -> float:
        """The risk that a conversation remembers: a turn that had to be steered stays one."""
        return max(self.value, self._alarmed_at)


class _MovingMean:
    """A plain mean until the moving average has had time to forget its start."""

    def __init__(self, decay: float, value: float, n_prior: int) -> None:
        """n_prior: of how many scores the value is the mean."""
        self._least_weight = 1.0 - decay
        self._n = n_prior
        self.value = value

    def add(self, score: float) -> float:
        self._n += 1
        self.value += (score - self.value) * max(self._least_weight, 1.0 / self._n)
        return self.value
