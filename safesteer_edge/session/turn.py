"""One turn of a session: a prompt evaluated, an answer decoded under guard, and told as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safesteer_edge.engine.llama_engine import PrefillStats
from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import PromptTooLongError
from safesteer_edge.guard.decoding import GuardedAnswer
from safesteer_edge.guard.events import (
    Event,
    PrefillDone,
    Refused,
    Step,
    TextDelta,
    Timings,
    TurnEnded,
    Usage,
)
from safesteer_edge.guard.policy import MAX_SEED
from safesteer_edge.guard.risk import is_score
from safesteer_edge.guard.transcript import AnswerSoFar, DecodingLimits
from safesteer_edge.session.guard import (
    active_guard,
    control_vector,
    guard_summary,
    prompt_score,
    words_score,
)
from safesteer_edge.session.history import SessionHistory
from safesteer_edge.session.prompt import Media
from safesteer_edge.session.protocol import TurnSettings
from safesteer_edge.session.runtime import Runtime
from safesteer_edge.templates.conversation import Message
from safesteer_edge.templates.reasoning import TextPiece


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """What one turn is about.

    before: the history that the turn grows from. asked: `before` with the question. media: of the
    conversation, by SHA-256.
    given: tokens that the answer begins with. so_far: an answer to go on with. n_media_encoded: for
    these items, and not taken from the cache.
    """

    before: SessionHistory
    asked: SessionHistory
    items: list[PromptItem]
    media: Mapping[str, Media]
    started_s: float
    given: tuple[int, ...] = ()
    so_far: AnswerSoFar | None = None
    n_media_encoded: int = 0


class SessionTurn:
    """Iterate `events()` once; the results are there before its last event.

    history: with the answer; None if it never began. so_far: the answer, to go on with; None: it
    was refused.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: TurnSettings,
        plan: TurnPlan,
        *,
        cancelled: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._plan = plan
        self._cancelled = cancelled
        # An answer that goes on does not repeat the draws of its beginning.
        n_drawn = len(plan.so_far.token_ids) if plan.so_far else 0
        self._seed = (settings.sampling.seed + n_drawn) % (MAX_SEED + 1)
        self._guard = active_guard(settings, runtime.bundle)
        self._vector = runtime.fixed_vector
        self._vector_gate: float | None = None
        if self._vector is None:
            self._vector = control_vector(settings, runtime.bundle, plan.asked.conversation)
            self._vector_gate = runtime.bundle.vector_gate if runtime.bundle else None
        so_far = plan.so_far
        self._asked_score = so_far.prompt_score if so_far and so_far.scores is not None else None
        self._words_score: float | None = None
        self.history: SessionHistory | None = None
        self.so_far: AnswerSoFar | None = None

    def events(self) -> Generator[Event, None, None]:
        """Answer. Raises PromptTooLongError, MediaError, EngineError, GuardError."""
        sampling = replace(self._settings.sampling, seed=self._seed)
        sampler = SamplerChain(sampling, n_vocab=self._runtime.model.n_vocab)
        try:
            prefill = self._prefill(sampler)
            asked = self._prompt_score(prefill)
            yield PrefillDone(
                n_prompt_tokens=prefill.n_prompt_tokens,
                n_media_tokens=prefill.n_media_tokens,
                n_reused_tokens=prefill.n_reused_tokens,
                prefill_s=prefill.elapsed_s,
                vector_active=self._vector is not None,
                # One that is no score is not told: the answer is refused for it.
                prompt_score=asked if asked is not None and is_score(asked) else None,
                n_media_encoded=self._plan.n_media_encoded,
            )
            yield from self._answer(prefill)
        except PrefillCancelledError:
            yield self._cancelled_early()
        finally:
            sampler.close()

    def _prefill(self, sampler: SamplerChain) -> PrefillStats:
        words_s = self._look_at_words()
        items, so_far, given = list(self._plan.items), self._plan.so_far, self._plan.given
        if so_far is not None and so_far.scores is not None and so_far.token_ids:
            items.append(TokenRun(so_far.token_ids))  # in the sequence still, and scored
            for token_id in so_far.token_ids:
                sampler.accept(token_id)
        engine = self._runtime.engine
        if self._vector is not None and self._vector_gate is not None:
            prefill = self._gated_prefill(items, sampler, self._vector_gate)
        else:
            runtime = self._runtime
            prefill = engine.prefill(
                items,
                sampler,
                control_vector=self._vector,
                steers_prompt=runtime.fixed_vector is not None
                and runtime.fixed_vector_steers_prompt,
                cancelled=self._cancelled,
            )
        if given and engine.n_free < len(given) + self._n_spare:
            raise PromptTooLongError(
                f"the answer is to begin with {len(given)} tokens, and {engine.n_free} are free "
                "after the prompt; shorten either, or raise --ctx"
            )
        return replace(prefill, elapsed_s=words_s + prefill.elapsed_s)

    def _look_at_words(self) -> float:
        """Score what is said and what pictures say, unless that is known; the seconds it took."""
        if self._asked_score is not None:
            return 0.0
        started_s = time.perf_counter()
        plan = self._plan
        self._words_score = words_score(
            self._guard, self._runtime, plan.asked.conversation, plan.media, self._cancelled
        )
        return time.perf_counter() - started_s

    def _gated_prefill(
        self, items: Sequence[PromptItem], sampler: SamplerChain, gate: float
    ) -> PrefillStats:
        """Look at the prompt without the vector, and again with it where it looks harmful.

        The second look costs one token: the rest of the prompt is the same.
        """
        engine, vector, self._vector = self._runtime.engine, self._vector, None
        plain = engine.prefill(items, sampler, cancelled=self._cancelled)
        score = prompt_score(self._guard, plain.last_state)
        if score is not None and score <= gate:
            return plain
        self._vector = vector
        steered = engine.prefill(items, sampler, control_vector=vector, cancelled=self._cancelled)
        return replace(
            steered,
            n_reused_tokens=plain.n_reused_tokens,
            elapsed_s=plain.elapsed_s + steered.elapsed_s,
        )

    def _prompt_score(self, prefill: PrefillStats) -> float | None:
        """Of the prompt that is answered, also where the answer's beginning was prefilled too.

        With media in the context, the highest one of the prompt's and of its words'.
        """
        if self._asked_score is None:
            score, words = prompt_score(self._guard, prefill.last_state), self._words_score
            if score is not None and words is not None:
                score = float(np.maximum(score, words))  # not max(), which may drop a NaN
            self._asked_score = score
        return self._asked_score

    @property
    def _n_spare(self) -> int:
        return self._settings.sampling.top_k + 1

    def _answer(self, prefill: PrefillStats) -> Iterator[Event]:
        engine, guard, plan = self._runtime.engine, self._guard, self._plan
        answer = GuardedAnswer(
            engine,
            guard,
            DecodingLimits(self._settings.max_tokens, self._n_spare),
            tokenize_plain=self._runtime.model.tokenize_plain,
            rng=np.random.default_rng(self._seed),
            cancelled=self._cancelled,
            carried_risk=plan.before.carried_risk(guard.policy) if guard else 0.0,
            prompt_score=self._prompt_score(prefill),
            given=plan.given,
            so_far=plan.so_far,
        )
        n_passes_before = engine.n_forward_passes
        decode_started_s = time.perf_counter()
        first_text_s: float | None = None
        for event in self._told_apart(answer.events()):
            if first_text_s is None and isinstance(event, TextDelta | Refused):
                first_text_s = time.perf_counter()
            yield event
        ended_s = time.perf_counter()
        message = self._keep(answer)
        decode_s = ended_s - decode_started_s
        yield TurnEnded(
            text=message.text,
            finish_reason=answer.finish_reason,
            guard=guard_summary(
                self._settings,
                self._runtime.bundle,
                answer,
                vector_active=self._vector is not None,
            ),
            usage=Usage(
                prompt_tokens=prefill.n_prompt_tokens,
                media_tokens=prefill.n_media_tokens,
                reused_tokens=prefill.n_reused_tokens,
                completion_tokens=answer.n_steps,
                forward_passes=engine.n_forward_passes - n_passes_before,
            ),
            timings=Timings(
                prefill_s=prefill.elapsed_s,
                ttft_s=(first_text_s or ended_s) - plan.started_s,
                decode_s=decode_s,
                probe_s=answer.probe_s,
                tokens_per_second=answer.n_steps / decode_s if decode_s > 0 else 0.0,
            ),
            refusal=answer.refusal,
            reasoning=message.reasoning,
        )

    def _told_apart(self, events: Iterator[Step | TextDelta | Refused]) -> Iterator[Event]:
        """The events, with text that says whether it is reasoning or answer."""
        reasoning_format = self._runtime.template.reasoning_format()
        if reasoning_format is None:
            yield from events
            return
        splitter = reasoning_format.splitter()
        if self._plan.so_far is not None:
            splitter.feed(self._plan.so_far.text)
        for event in events:
            if isinstance(event, TextDelta):
                yield from _deltas(splitter.feed(event.text))
                continue
            if isinstance(event, Refused):
                yield from _deltas(splitter.finish())
            yield event
        yield from _deltas(splitter.finish())

    def _keep(self, answer: GuardedAnswer) -> Message:
        """Add the answer to the history; its reasoning beside its text, not in it."""
        refusal_text = answer.refusal.text if answer.refusal else ""
        reasoning, text = self._split(answer.text.removesuffix(refusal_text))
        text = text + refusal_text if text else refusal_text.lstrip("\n")
        message = replace(
            Message.from_text("assistant", text, token_ids=answer.token_ids), reasoning=reasoning
        )
        self.history = self._plan.asked.with_message(message, answer.risk)
        if answer.refusal is None:
            scores = answer.scores[: len(answer.token_ids)]  # what was dropped was at the end
            self.so_far = AnswerSoFar(
                answer.text, answer.token_ids, scores, prompt_score=self._asked_score
            )
        return message

    def _split(self, text: str) -> tuple[str | None, str]:
        reasoning_format = self._runtime.template.reasoning_format()
        return reasoning_format.split(text) if reasoning_format else (None, text)

    def _cancelled_early(self) -> TurnEnded:
        """The end of a turn whose prompt was not read to its end."""
        elapsed_s = time.perf_counter() - self._plan.started_s
        return TurnEnded(
            text=self._split(self._plan.so_far.text)[1] if self._plan.so_far else "",
            finish_reason="cancelled",
            guard=guard_summary(self._settings, self._runtime.bundle, None, vector_active=False),
            usage=Usage(0, 0, 0, 0, 0),
            timings=Timings(elapsed_s, elapsed_s, 0.0, 0.0, 0.0),
        )


def _deltas(pieces: Sequence[TextPiece]) -> Iterator[TextDelta]:
    for piece in pieces:
        yield TextDelta(piece.text, piece.part, piece.start)
