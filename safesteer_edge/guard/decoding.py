"""Guarded decoding: the loop that turns an engine, a probe and a policy into one answer.

Pure logic on the `DecodingEngine` and `Probe` protocols; knows nothing of llama.cpp, ONNX,
templates or files. Safety fails closed: whatever keeps the guard from judging ends the turn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from safesteer_edge.errors import GuardError
from safesteer_edge.guard.events import (
    Candidate,
    FinishReason,
    Refused,
    Steered,
    Step,
    TextDelta,
)
from safesteer_edge.guard.policy import N_LOOKED_AHEAD
from safesteer_edge.guard.protocols import Block, DecodingEngine, Proposal
from safesteer_edge.guard.reranking import (
    RERANKERS,
    Choice,
    Tilt,
    choose_as_proposed,
    choose_by_odds,
    with_openings,
)
from safesteer_edge.guard.risk import RefusalReason, RunningRisk
from safesteer_edge.guard.transcript import (
    ActiveGuard,
    AnswerSoFar,
    DecodingLimits,
    TimedProbe,
    Transcript,
    ends_sentence,
    evaluated_candidates,
    repeats_itself,
)

_NO_SCORES = np.empty(0)

AnswerEvent = Step | TextDelta | Steered | Refused

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
    prompt_score: of the prompt.
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
        self._given_left = deque(given)
        self._n_given = len(self._given_left)
        self._unused_openings = list(guard.openings) if guard else []
        self._openings: tuple[Block, ...] = ()  # that join the next step's candidates
        self._looks_ahead = False  # at the next step
        self._prompt_score = prompt_score
        self._carried_risk = carried_risk
        self._risk: RunningRisk | None = None  # with a guard, from the first step on
        self._transcript = Transcript()
        self._scores: list[float] = []
        self._kept_scores: list[float] = []  # of the tokens that stand
        self._so_far = so_far
        if so_far is not None:
            pieces = map(engine.piece, so_far.token_ids)
            self._transcript.begin_with(so_far.text, so_far.token_ids, pieces)
        self.finish_reason: FinishReason = "stop"
        self.refusal: Refused | None = None
        self.guard_error: GuardError | None = None
        self.n_interventions = 0
        self.n_steered = 0
        self.opening = ""
        self._n_behind_opening = 0  # tokens
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
    def kept_scores(self) -> tuple[float, ...]:
        """Harmful scores of `token_ids`, as far as they were judged."""
        return tuple(self._kept_scores[: len(self._transcript.token_ids)])

    @property
    def risk(self) -> float | None:
        """The running risk now; None without a guard, and where it could not be judged."""
        return self._risk.value if self._risk else None

    @property
    def conversation_risk(self) -> float | None:
        """What the conversation remembers of this answer's risk; None as `risk`."""
        return self._risk.of_conversation if self._risk else None

    def events(self) -> Iterator[AnswerEvent]:
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
            self._engine.take_back(self._drop_unsettled())
        elif self.refusal is None:
            yield from self._settle(is_over=True)

    def _decode(self) -> Iterator[AnswerEvent]:
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
            is_given = bool(self._given_left)
            proposal, choice = self._next(is_given=is_given)
            chosen = proposal.candidate(choice.index)
            is_opening = choice.index >= len(proposal.token_ids)
            if self._guard is not None:
                self._engine.accept_block(chosen)
            if is_opening:
                self._note_opening(chosen)
            # 2. Count it, token by token.
            is_end = self._engine.is_end(chosen[-1])
            self._n_behind_opening = 0 if is_opening else self._n_behind_opening + len(chosen)
            for place in range(len(chosen)):
                yield self._count(proposal, choice, place, is_given=is_given)
            if self._guard is None:  # nobody judges it: people need not wait until it is evaluated
                yield from self._settle()
                self._engine.evaluate(chosen[0])
                self._engine.accept(chosen[0])
            # 3. Steer anew or refuse, or let people see what is settled.
            refusal_reason = self._refusal_reason()
            if refusal_reason is not None:
                if self._can_steer_anew():
                    yield self._steer_anew(refusal_reason)
                    continue
                if self._refuses():
                    yield self._refuse(refusal_reason, detail=REFUSAL_DETAILS[refusal_reason])
                    return
            if is_end or self._has_declined():
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
                self._kept_scores.append(score)
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
        if self.n_steps - self._n_given >= self._limits.max_tokens:
            return "length"
        n_before = self._n_given + (len(self._so_far.token_ids) if self._so_far else 0)
        own = self._transcript.token_ids[n_before:]
        if own and repeats_itself(own):
            return "loop"
        if self._engine.n_free < self._limits.n_spare:
            return "length"
        return None

    def _next(self, *, is_given: bool) -> tuple[Proposal, Choice]:
        """What is said next, evaluated, and what it was chosen from."""
        if self._looks_ahead:
            self._looks_ahead = False
            found = self._beginning_of_its_own()
            if found is not None:
                self._openings = ()
                return found
        proposal = self._given_proposal() if is_given else self._propose()
        return proposal, self._choose(proposal, is_given=is_given)

    def _beginning_of_its_own(self) -> tuple[Proposal, Choice] | None:
        """The model's likely beginning that leads to the safest place, if that is safe enough."""
        guard, engine = self._guard, self._engine
        if guard is None:
            return None
        timed = TimedProbe(guard.probe)
        proposal, states = engine.look_ahead(guard.policy.look_ahead)
        choice = choose_by_odds(timed, proposal, states, self._rng)
        self.probe_s += timed.elapsed_s
        if not choice.score <= guard.policy.look_ahead_limit:
            return None
        engine.evaluate_blocks([proposal.candidate(choice.index)])
        return proposal, choice

    def _given_proposal(self) -> Proposal:
        """The next given token, as the one candidate that there is."""
        token_ids = np.array([self._given_left.popleft()], dtype=np.int32)
        return Proposal(token_ids, np.zeros(1), drawn=0, greedy=True)

    def _propose(self) -> Proposal:
        """The sampler's candidates, and safe openings beside them where it is steered anew."""
        proposal, openings, guard = self._engine.propose(), self._openings, self._guard
        self._openings = ()
        if not openings or guard is None:
            return proposal
        return with_openings(proposal, openings, guard.policy.opening_share, self._rng)

    def _choose(self, proposal: Proposal, *, is_given: bool) -> Choice:
        guard, risk = self._guard, self._risk
        if guard is None:
            return Choice(proposal.drawn, math.nan, _NO_SCORES, False, token_scores=())
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

    def _count(
        self,
        proposal: Proposal,
        choice: Choice,
        place: int,
        *,
        is_given: bool,
    ) -> Step:
        """Count one token; place: of those that were chosen at this step together."""
        token_id = proposal.candidate(choice.index)[place]
        is_end = self._engine.is_end(token_id)
        self.n_steps += 1
        text = self._transcript.add(token_id, self._engine.piece(token_id), is_end=is_end)
        score: float | None = None
        candidates: tuple[Candidate, ...] = ()
        if self._risk is not None:
            score = choice.token_scores[place]
            self._risk.add(score)
            self._scores.append(score)
            self._kept_scores.append(score)
            if place == 0:
                self.n_interventions += choice.intervened
                n_evaluated = choice.n_evaluated
                self.n_evaluated_candidates += n_evaluated
                if n_evaluated > 1:
                    candidates = evaluated_candidates(proposal, choice, self._engine.piece)
        return Step(
            step=self.n_steps,
            token_id=token_id,
            text=text,
            logprob=float(proposal.log_probs[choice.index]),
            score=score,
            # What follows a beginning of the model's own is what it says by itself.
            accepted=not choice.intervened or (place > 0 and bool(proposal.ahead)),
            risk=self.risk,
            candidates=candidates,
            proposed_token_id=int(
                proposal.token_ids[proposal.drawn if proposal.sampled is None else proposal.sampled]
            ),
            given=is_given,
            opening=choice.index >= len(proposal.token_ids),
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
        return score > self._guard.policy.alert_threshold or not self._risk.is_calm

    def _settle(self, *, is_over: bool = False) -> Iterator[TextDelta]:
        text = self._transcript.settle(is_over=is_over)
        if text:
            yield TextDelta(text)

    def _can_steer_anew(self) -> bool:
        guard = self._guard
        return guard is not None and guard.mode == "steer" and self.n_steered < guard.policy.retries

    def _steer_anew(self, reason: RefusalReason) -> Steered:
        """Take the unsettled tail back and begin again from there, among safer candidates.

        What the caller put into the answer goes with it: given words are no way to keep it harmful.
        """
        guard, risk = self._guard, self._risk
        if guard is None or risk is None:
            raise GuardError("there is no guard to steer with")
        n_taken_back = self._drop_unsettled()
        self._engine.rewind(n_taken_back)
        self._given_left.clear()
        risk.begin_again(self._kept_scores)
        self._openings = self._openings_that_fit(self._unused_openings)
        self._looks_ahead = self._can_look_ahead()
        self.n_steered += 1
        self.opening = ""
        return Steered(self.n_steered, reason, self.n_steps, n_taken_back)

    def _openings_that_fit(self, openings: Sequence[str]) -> tuple[Block, ...]:
        """As tokens; behind text that people have seen they begin a paragraph of their own."""
        if self._guard is None or self._guard.no_opening_in(self._transcript.text):
            return ()
        before = "\n\n" if self._transcript.text else ""
        blocks = tuple(tuple(self._tokenize_plain(before + text)) for text in openings)
        n_cells = sum(map(len, blocks))
        return blocks if self._engine.n_free >= self._limits.n_spare + n_cells else ()

    def _can_look_ahead(self) -> bool:
        """Where nothing has been said: behind half a sentence no likely token turns back."""
        guard = self._guard
        if guard is None or not guard.policy.look_ahead or self.n_steered or self._transcript.text:
            return False
        n_cells = self._limits.n_spare + N_LOOKED_AHEAD * guard.policy.look_ahead
        return not guard.no_opening_in("") and self._engine.n_free >= n_cells

    def _note_opening(self, block: Block) -> None:
        text = b"".join(map(self._engine.piece, block)).decode("utf-8", "replace").lstrip("\n")
        self.opening = text
        self._unused_openings = [each for each in self._unused_openings if each != text]

    def _has_declined(self) -> bool:
        """Whether a raised opening has been made a sentence, and the model is to say no more."""
        n_least = self._guard.opening_tokens if self._guard else 0
        is_whole = 0 < n_least <= self._n_behind_opening and bool(self.opening)
        return is_whole and ends_sentence(self._transcript.text)

    def _refuses(self) -> bool:
        return self._guard is not None and self._guard.policy.refuses

    def _drop_unsettled(self) -> int:
        n_dropped = self._transcript.drop_unsettled()
        del self._kept_scores[len(self._transcript.token_ids) :]
        return n_dropped

    def _refuse(self, reason: RefusalReason, *, detail: str) -> Refused:
        """Take the unsettled tail back, in text and KV cache, and put a refusal in its place."""
        guard = self._guard
        if guard is None:
            raise GuardError("there is no guard to refuse with")
        n_taken_back = self._drop_unsettled()
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
