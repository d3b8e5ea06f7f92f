"""What the decoding of one answer is given: the guard, the limits, the answer to go on with."""

from __future__ import annotations

from dataclasses import dataclass

from safesteer_edge.guard.policy import GuardMode, GuardPolicy, RerankName
from safesteer_edge.guard.probe_protocol import Probe


@dataclass(frozen=True, slots=True)
class ActiveGuard:
    """A guard in force: with mode `off` there is none (None in its place)."""

    mode: GuardMode
    rerank: RerankName
    policy: GuardPolicy
    probe: Probe
    refusal_text: str


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """max_tokens: at most, given ones aside. n_spare: free context cells a step may need."""

    max_tokens: int
    n_spare: int


@dataclass(frozen=True, slots=True)
class AnswerSoFar:
    """An answer to go on with.

    scores: of its tokens, which are then in the sequence already. None: they are not known and the
    sequence ends before the answer; its tokens are evaluated, and scored, before anything is added.
    prompt_score: of the prompt that it answers, where the sequence does not end with that.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: tuple[float, ...] | None
    prompt_score: float | None = None
