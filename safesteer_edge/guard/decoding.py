"""Guarded decoding: the loop that turns an engine, a probe and a policy into one answer.

Pure logic on the `DecodingEngine` and `Probe` protocols; knows nothing of llama.cpp, ONNX,
templates or files. Safety fails closed: whatever keeps the guard from judging ends the turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.events import Candidate, FinishReason, Refused, Step, TextDelta
from safesteer_edge.guard.protocols import DecodingEngine, Proposal
from safesteer_edge.guard.reranking import RERANKERS, Choice, Tilt, choose_as_proposed
from safesteer_edge.guard.risk import RefusalReason, RunningRisk
from safesteer_edge.guard.transcript import (
    ActiveGuard,
    AnswerSoFar,
    DecodingLimits,
    TimedProbe,
    Transcript,
    evaluated_candidates,
)

_NO_SCORES = np.empty(0)

REFUSAL_DETAILS: dict[RefusalReason, str] = {
    "risk_limit": "the answer was turning harmful",
    "no_safe_candidate": "every continuation looked harmful",
    "guard_failed": "the guard could not judge the answer",
}


class GuardedAnswer:
    """One answer being decoded. Iterate `events()` once; read the results afterwards.

    given: tokens that the answer begins with, whoever wrote them. They are fed one at a time and
    judged as the model's own are, so that words put into its mouth are no way round the guard.
    text, token_ids: the answer as it stands in the sequence, without the token that ended it. A
    refusal is always part of both; the sequence lacks it if the context had no room left.
    carried_risk: what the conversation's next turn starts with. prompt_score: of the last prompt
    position.
    """

    def __init__(
        self,
        engine: DecodingEngine,
        guard: ActiveGuard | None,
        limits: DecodingLimits,
        *,
        tokenize_plain: Callable[[str], Sequence[int]],
        rng: np.random.Generator,
        cancelled: Callable[[], bool] = lambda: False,
        carried_risk: float = 0.0,
        prompt_score: float | None = None,
        given: Sequence[int] = (),
        so_far: AnswerSoFar | None = None,
    ) -> None:
        self._engine = engine
        self._guard = guard
        self._limits = limits
        self._tokenize_plain = tokenize_plain
        self._rng = rng
        self._cancelled = cancelled
        self._given = tuple(given)
        self._prompt_score = prompt_score
        self._carried_risk = carried_risk
        self._risk: RunningRisk | None = None  # with a guard, from the first step on
        self._transcript = Transcript()
        self._scores: list[float] = []
        self._so_far = so_far
        if so_far is not None:
            pieces = map(engine.piece, so_far.token_ids)
            self._transcript.begin_with(so_far.text, so_far.token_ids, pieces)
        self.finish_reason: FinishReason = "stop"
        self.refusal: Refused | None = None
        self.guard_error: GuardError | None = None
        self.n_interventions = 0
        self.n_evaluated_candidates = 0
        self.n_steps = 0
        self.probe_s = 0.0

    @property
    def text(self) -> str:
        """The answer so far, settled or not."""
        return self._transcript.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens of the answer so far."""
        return tuple(self._transcript.token_ids)

    @property
    def scores(self) -> tuple[float, ...]:
        """Harmful scores of all tokens that were emitted, taken back or not."""
        return tuple(self._scores)

    @property
    def risk(self) -> float | None:
        """The running risk now; None without a guard, and where it could not be judged."""
        return self._risk.value if self._risk else None

    @property
    def carried_risk(self) -> float:
        """What the next turn of the conversation starts with."""
        return self._risk.carry_over() if self._risk else 0.0

    def events(self) -> Iterator[Step | TextDelta | Refused]:
        """Decode until the answer ends, yielding what happens. Generator: stops between tokens."""
        try:
            yield from self._decode()
        except GuardError as error:
            if self._guard is None:  # the sampler's: there is no guard to refuse with
                raise
            self.guard_error = error
            yield self._refuse("guard_failed", detail=str(error))
        if self.finish_reason == "cancelled":
            # The guard was still weighing the tail: what it has not let through stays unsaid.
            self._engine.take_back(self._transcript.drop_unsettled())
        elif self.refusal is None:
            yield from self._settle(is_over=True)

    def _decode(self) -> Iterator[Step | TextDelta | Refused]:
        if self._guard is not None:
            self._risk = RunningRisk(
                self._guard.policy, carried=self._carried_risk, prompt_score=self._prompt_score
            )
        recalled_reason = self._recall()
        if recalled_reason is not None:
            yield self._refuse(recalled_reason, detail=REFUSAL_DETAILS[recalled_reason])
            return
        while True:
            reason = self._reason_to_stop()
            if reason is not None:
                self.finish_reason = reason
                return
            # 1. The sampler proposes; the guard chooses; the choice joins the sequence.
            is_given = self.n_steps < len(self._given)
            proposal = self._given_proposal() if is_given else self._engine.propose()
            choice = self._choose(proposal, is_given=is_given)
            token_id = int(proposal.token_ids[choice.index])
            self._engine.accept(token_id)
            # 2. Count it.
            self.n_steps += 1
            is_end = self._engine.is_end(token_id)
            text = self._transcript.add(token_id, self._engine.piece(token_id), is_end=is_end)
            yield self._count(proposal, choice, text, is_given=is_given)
            # 3. Refuse, or let people see what is settled.
            refusal_reason = self._refusal_reason()
            if refusal_reason is not None:
                yield self._refuse(refusal_reason, detail=REFUSAL_DETAILS[refusal_reason])
                return
            if is_end:
                self.finish_reason = "stop"
                return
            if not self._is_held_back(choice.score):
                yield from self._settle()

    def _recall(self) -> RefusalReason | None:
        """Count what was said before this turn towards the risk; why it must not go on, or None."""
        if self._so_far is None:
            return None
        known_scores = self._so_far.scores
        for index, token_id in enumerate(self._so_far.token_ids):
            if known_scores is None:
                if self._reason_to_stop() is not None:
                    return None  # the loop meets the same reason
                score = self._evaluate_again(token_id)
            else:
                score = known_scores[index] if self._risk is not None else math.nan
            if self._risk is not None:
                self._risk.add(score)
                self._scores.append(score)
            reason = self._refusal_reason()
            if reason is not None:
                return reason
        return None

    def _evaluate_again(self, token_id: int) -> float:
        """Feed a token of the answer as decoding did, so that its score is the same."""
        state = self._engine.evaluate(token_id)
        self._engine.accept(token_id)
        if self._guard is None:
            return math.nan
        timed = TimedProbe(self._guard.probe)
        score = float(timed.score(state[np.newaxis, :])[0])
        self.probe_s += timed.elapsed_s
        return score

    def _reason_to_stop(self) -> FinishReason | None:
        if self._cancelled():
            return "cancelled"
        if self.n_steps - len(self._given) >= self._limits.max_tokens:
            return "length"
        if self._engine.n_free < self._limits.n_spare:
            return "length"
        return None

    def _given_proposal(self) -> Proposal:
        """The next given token, as the one candidate that there is."""
        token_ids = np.array([self._given[self.n_steps]], dtype=np.int32)
        return Proposal(token_ids, np.zeros(1), drawn=0, greedy=True)

    def _choose(self, proposal: Proposal, *, is_given: bool) -> Choice:
        guard, risk = self._guard, self._risk
        if guard is None:
            self._engine.evaluate(int(proposal.token_ids[proposal.drawn]))
            return Choice(proposal.drawn, math.nan, _NO_SCORES, intervened=False)
        if risk is None:
            raise GuardError("the guard knows no risk to judge by")
        tilt = Tilt(risk.strength, guard.policy.threshold)
        steers = guard.mode == "steer" and not is_given
        rerank = RERANKERS[guard.rerank] if steers else choose_as_proposed
        timed = TimedProbe(guard.probe)
        choice = rerank(self._engine, timed, proposal, tilt, self._rng)
        self.probe_s += timed.elapsed_s
        if not math.isfinite(choice.score):
            raise GuardError("the guard has no score for the token that it chose")
        return choice

    def _count(self, proposal: Proposal, choice: Choice, text: str, *, is_given: bool) -> Step:
        score: float | None = None
        candidates: tuple[Candidate, ...] = ()
        if self._risk is not None:
            score = choice.score
            self._risk.add(score)
            self._scores.append(score)
            self.n_interventions += choice.intervened
            self.n_evaluated_candidates += choice.n_evaluated
            if choice.n_evaluated > 1:
                candidates = evaluated_candidates(proposal, choice, self._engine.piece)
        return Step(
            step=self.n_steps,
            token_id=int(proposal.token_ids[choice.index]),
            text=text,
            logprob=float(proposal.log_probs[choice.index]),
            score=score,
            accepted=not choice.intervened,
            risk=self.risk,
            candidates=candidates,
            proposed_token_id=int(proposal.token_ids[proposal.drawn]),
            given=is_given,
        )

    def _refusal_reason(self) -> RefusalReason | None:
        if self._guard is None or self._risk is None or self._guard.mode == "monitor":
            return None
        return self._risk.refusal_reason()

    def _is_held_back(self, score: float) -> bool:
        """Text is unsettled until the risk is known and low, and while tokens score above τ.

        So what people read is seldom taken back, and a refusal seldom follows half a sentence.
        """
        if self._guard is None or self._risk is None or self._guard.mode == "monitor":
            return False
        return score > self._guard.policy.threshold or not self._risk.is_calm

    def _settle(self, *, is_over: bool = False) -> Iterator[TextDelta]:
        text = self._transcript.settle(is_over=is_over)
        if text:
            yield TextDelta(text)

    def _refuse(self, reason: RefusalReason, *, detail: str) -> Refused:
        """Take the unsettled tail back, in text and KV cache, and put a refusal in its place."""
        guard = self._guard
        if guard is None:
            raise GuardError("there is no guard to refuse with")
        n_taken_back = self._transcript.drop_unsettled()
        self._engine.take_back(n_taken_back)
        separator = "\n\n" if self._transcript.text else ""
        refusal_text = separator + guard.refusal_text
        token_ids = self._tokenize_plain(refusal_text)
        if self._engine.n_free > len(token_ids):
            self._engine.append(token_ids)
        self._transcript.append_refusal(refusal_text, token_ids)
        self.finish_reason = "refused"
        self.refusal = Refused(reason, detail, refusal_text, self.n_steps, n_taken_back)
        return self.refusal
