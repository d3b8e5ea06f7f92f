"""Answers to guard: word by word as a test writes them, or random ones for the laws."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from safesteer_edge.guard.decoding import AnswerEvent, GuardedAnswer
from safesteer_edge.guard.events import (
    Event,
    Refused,
    Step,
    TextDelta,
    event_from_json,
    event_to_json,
)
from safesteer_edge.guard.policy import GuardMode, GuardPolicy, RerankName
from safesteer_edge.guard.protocols import Probe
from safesteer_edge.guard.transcript import ActiveGuard, DecodingLimits
from tests.guard.plain_probes import PlainProbe
from tests.guard.scripted_engine import Prefix, ScriptedEngine

END = 0
REFUSAL_TEXT = "I will not help with that."
POLICY = GuardPolicy(
    strength=8.0,
    threshold=0.5,
    hard_threshold=0.95,
    hard_patience=3,
    risk_limit=1.0,
    risk_decay=0.9,
    risk_min_steps=1,
    risk_gain=0.0,
    conversation_carry=0.5,
)
# What can be no score and no risk.
NO_SCORES = (float("nan"), float("inf"), float("-inf"), -0.1, 1.1)
no_scores = (
    st.sampled_from(NO_SCORES)
    | st.floats(max_value=0.0, exclude_max=True).filter(lambda value: value < 0)
    | st.floats(min_value=1.0, exclude_min=True)
)
# The random answers' tokens: whole words, pieces of characters, and nothing at all.
_PIECES = (b"", b"a", b" be", "é".encode(), b"\xe4", b"\xbd\xa0", b"x\xf0\x9f", b"\x98\x80", b"!")


def refusal_tokens(text: str) -> list[int]:
    """A tokenizer for refusals and openings: one token per byte, none of them in use elsewhere."""
    return [10_000 + byte for byte in text.encode()]


@dataclass
class ScriptedAnswer:
    """One answer, ready to decode. Change what a test is about, then call `decode`.

    policy None: no guard. events: filled by `decode`.
    """

    engine: ScriptedEngine
    probe: Probe
    mode: GuardMode = "steer"
    rerank: RerankName = "lazy"
    policy: GuardPolicy | None = POLICY
    max_tokens: int = 1000
    n_spare: int = 1
    carried_risk: float = 0.0
    prompt_score: float | None = None
    given: Sequence[int] = ()
    openings: tuple[str, ...] = ()
    opening_tokens: int = 0
    no_opening_in: Callable[[str], bool] = lambda _text: False
    cancelled: Callable[[], bool] = lambda: False
    events: list[AnswerEvent] = field(default_factory=list[AnswerEvent])

    def start(self) -> GuardedAnswer:
        """The answer before its first token."""
        guard = (
            ActiveGuard(
                self.mode,
                self.rerank,
                self.policy,
                self.probe,
                REFUSAL_TEXT,
                self.openings,
                self.opening_tokens,
                no_opening_in=lambda text: self.no_opening_in(text),
            )
            if self.policy
            else None
        )
        self.engine.given = tuple(self.given)
        return GuardedAnswer(
            self.engine,
            guard,
            DecodingLimits(self.max_tokens, self.n_spare),
            tokenize_plain=refusal_tokens,
            rng=np.random.default_rng(self.engine.seed),
            cancelled=lambda: self.cancelled(),
            carried_risk=self.carried_risk,
            prompt_score=self.prompt_score,
            given=self.given,
        )

    def decode(self) -> GuardedAnswer:
        """Decode it all, and check what holds for every answer."""
        answer = self.start()
        for event in answer.events():
            self.events.append(event)
        assert self.said == answer.text
        assert all(through_json(event) == event for event in self.events)
        expected = list(answer.token_ids)
        is_ended = self.engine.is_end(self.engine.sequence[-1]) if self.engine.sequence else False
        if answer.finish_reason == "stop":
            assert is_ended or self.opening_tokens  # else the guard ended it behind a sentence
            expected += [self.engine.sequence[-1]] * is_ended
        assert self.engine.sequence == expected
        return answer

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def deltas(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, TextDelta)]

    @property
    def said(self) -> str:
        """What a reader has seen."""
        return "".join(e.text for e in self.events if isinstance(e, TextDelta | Refused))


def through_json(event: Event) -> Event:
    """The event after a trip through JSON text."""
    return event_from_json(json.loads(json.dumps(event_to_json(event), allow_nan=False)))


def spelled(*words: tuple[str | bytes, float]) -> ScriptedAnswer:
    """An answer that can only be these words, with these scores, and then ends (score 0)."""
    pieces = {
        token_id: word.encode() if isinstance(word, str) else word
        for token_id, (word, _) in enumerate(words, start=1)
    }

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        return {len(prefix) + 1 if len(prefix) < len(words) else END: 1.0}

    scores = [score for _, score in words] + [0.0]
    return ScriptedAnswer(
        engine=ScriptedEngine(next_tokens, pieces, end_ids={END}),
        probe=PlainProbe(lambda position, _token_id: scores[position]),
    )


def random_answer(seed: int, *, greedy: bool, score_levels: Sequence[float]) -> ScriptedAnswer:
    """An answer over a small vocabulary: a fixed function of the seed and the prefix."""

    def next_tokens(prefix: Prefix) -> dict[int, float]:
        rng = np.random.default_rng([seed, *prefix])
        n_candidates = int(rng.integers(1, 6))
        token_ids = rng.permutation(len(_PIECES))[:n_candidates]
        weights = rng.integers(1, 8, n_candidates)  # small integers: ties are common
        return {int(i): float(w) for i, w in zip(token_ids, weights, strict=True)}

    def score_of(position: int, token_id: int) -> float:
        return float(np.random.default_rng([seed, position, token_id]).choice(score_levels))

    return ScriptedAnswer(
        engine=ScriptedEngine(
            next_tokens, dict(enumerate(_PIECES)), end_ids={END}, greedy=greedy, seed=seed
        ),
        probe=PlainProbe(score_of),
        max_tokens=24,
    )


def policy_with(**changes: float) -> GuardPolicy:
    """POLICY with some numbers changed."""
    return replace(POLICY, **changes)  # pyright: ignore[reportArgumentType] counts are ints
