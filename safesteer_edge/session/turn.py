"""One turn of a session: the history that it grows from, and the guard that is in force.

A prompt is evaluated, an answer decoded under guard, and told as events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.bundle.bundle import GuardBundle
from safesteer_edge.engine.grammar import Grammar
from safesteer_edge.engine.llama_engine import PrefillStats
from safesteer_edge.engine.main_sequence import PrefillCancelledError
from safesteer_edge.engine.prompt_items import PromptItem, TokenRun, message_span
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import InputError, PromptTooLongError, SettingsError
from safesteer_edge.guard.decoding import GuardedAnswer
from safesteer_edge.guard.events import (
    Event,
    GuardSummary,
    MediaPrepared,
    PrefillDone,
    Refused,
    TextDelta,
    Timings,
    TurnEnded,
    Usage,
)
from safesteer_edge.guard.policy import MAX_SEED, GuardPolicy
from safesteer_edge.guard.readings import ReadingCurves, ReadingKind, combined_score
from safesteer_edge.guard.risk import is_score
from safesteer_edge.guard.transcript import ActiveGuard, AnswerSoFar, DecodingLimits
from safesteer_edge.media.decoder import DecodedImage
from safesteer_edge.session.prompt import (
    Media,
    SidePrompt,
    alone_prompt,
    media_texts,
    sentence_spans,
    side_prompts,
    sides_read,
)
from safesteer_edge.session.protocol import ChatMessage, TurnSettings
from safesteer_edge.session.runtime import Runtime
from safesteer_edge.templates.conversation import Content, Conversation, MediaContent, Message
from safesteer_edge.templates.reasoning import ReasoningSplitter, TextPiece


def check_turn_settings(
    settings: TurnSettings, bundle: GuardBundle | None, *, n_candidates: int
) -> None:
    """Raise SettingsError for what this session cannot do, or what would weaken its guard.

    Raises BundleError for answers under a guard that nobody has measured.

    n_candidates: as many as the context was made for.
    """
    if settings.guard == "off":
        return
    if bundle is None:
        raise SettingsError(
            f"guard is {settings.guard!r}, and this session was opened without a guard bundle; "
            "open it again without --guard off"
        )
    if settings.guard != "monitor":
        bundle.require_calibrated()
    bundle.policy.tightened(strength=settings.strength, threshold=settings.threshold)
    if settings.sampling.top_k > n_candidates:
        raise SettingsError(
            f"top_k is {settings.sampling.top_k}, and this session was opened for "
            f"{n_candidates} candidates; choose at most as many, or open it again with --top-k"
        )


def active_guard(settings: TurnSettings, bundle: GuardBundle | None) -> ActiveGuard | None:
    """The guard of one turn, None with the guard off."""
    if bundle is None or settings.guard == "off":
        return None
    return ActiveGuard(
        mode=settings.guard,
        rerank=settings.rerank,
        policy=bundle.policy.tightened(strength=settings.strength, threshold=settings.threshold),
        probe=bundle.probe,
        refusal_text=bundle.config.refusal_text,
        openings=bundle.config.openings,
        opening_tokens=bundle.config.opening_tokens,
        prompt_probe=bundle.prompt_probe,
    )


@dataclass(frozen=True, slots=True)
class SessionHistory:
    """risks: one a message, the running risk at its end; None: not an answer, or unknown."""

    conversation: Conversation = field(default_factory=Conversation)
    risks: tuple[float | None, ...] = ()

    def with_message(self, message: Message, risk: float | None = None) -> SessionHistory:
        """This history with one more message at its end."""
        return SessionHistory(self.conversation.with_message(message), (*self.risks, risk))

    def without_last(self) -> SessionHistory:
        """This history without its last message."""
        kept = replace(self.conversation, messages=self.conversation.messages[:-1])
        return SessionHistory(kept, self.risks[:-1])

    def carried_risk(self, policy: GuardPolicy) -> float:
        """What the next answer starts with: a share of the last one's risk.

        Where that is unknown, as much as an answer can have ended with that was let through:
        restarting the program or switching the guard off must not wash a conversation clean.
        """
        for message, risk in zip(
            reversed(self.conversation.messages), reversed(self.risks), strict=True
        ):
            if message.role == "assistant":
                return policy.conversation_carry * (policy.risk_limit if risk is None else risk)
        return 0.0


def restored_history(
    messages: Sequence[ChatMessage],
    present: SessionHistory,
    *,
    content_of: Callable[[ChatMessage], tuple[Content, ...]],
) -> SessionHistory:
    """The history of stored messages.

    What they share with the present one keeps its exact tokens, and so its place in the KV cache;
    what follows has none: a file's tokens are never trusted.
    Raises InputError for an order that no conversation has, and what content_of raises.
    """
    _check_order(messages)
    is_shared = True
    restored: list[Message] = []
    for index, message in enumerate(messages):
        made = Message(message.role, content_of(message))
        known = present.conversation.messages[index : index + 1]
        says_the_same = [(m.role, m.content) for m in known] == [(made.role, made.content)]
        is_shared = is_shared and says_the_same
        restored.append(known[0] if is_shared else made)
    return SessionHistory(
        Conversation(tuple(restored)), tuple(message.risk for message in messages)
    )


def _check_order(messages: Sequence[ChatMessage]) -> None:
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise InputError(
            f"cannot restore a conversation of {roles[:8]}: expected a system prompt or none, then "
            "questions and answers in turn; leave out what has no answer"
        )
    for message in messages:
        has_files = message.images or message.sounds or message.documents or message.tool_results
        if message.role != "user" and has_files:
            raise InputError(f"cannot restore a {message.role} message with files: only users send")


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """What one turn is about.

    asked: the history with the question. items: its prompt; prepared: what became of the media in
    it. media: of the conversation, by SHA-256. prompt: what the prompt has of `asked`; what is left
    out counts towards the risk still.
    given: tokens that the answer begins with. so_far: an answer to go on with. grammar: the form
    that it must have, as GBNF; '': any.
    """

    asked: SessionHistory
    prompt: Conversation
    items: list[PromptItem]
    prepared: Sequence[MediaPrepared]
    media: Mapping[str, Media]
    started_s: float
    given: tuple[int, ...] = ()
    so_far: AnswerSoFar | None = None
    grammar: str = ""


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
        self._engine = runtime.engine
        self._settings = settings
        self._plan = plan
        self._cancelled = cancelled
        # An answer that goes on does not repeat the draws of its beginning.
        n_drawn = len(plan.so_far.token_ids) if plan.so_far else 0
        self._seed = (settings.sampling.seed + n_drawn) % (MAX_SEED + 1)
        self._n_spare = settings.sampling.top_k + 1
        self._guard = active_guard(settings, runtime.bundle)
        if self._guard and plan.grammar:
            self._guard = self._guard.in_a_form()
        elif self._guard and runtime.tool_format and plan.asked.conversation.tools:
            self._guard = replace(self._guard, no_opening_in=runtime.tool_format.is_open)
        self._reasoning = runtime.template.reasoning_style()
        self._vector = runtime.fixed_vector
        self._vector_gate: float | None = None
        if self._vector is None and runtime.bundle is not None:
            self._vector = _alignment_vector(settings, runtime.bundle, plan.prompt)
            self._vector_gate = runtime.bundle.vector_gate
        self._prompt_score: float | None = None
        self._n_readings = 0
        self.history: SessionHistory | None = None
        self.so_far: AnswerSoFar | None = None

    def events(self) -> Generator[Event, None, None]:
        """Answer. Raises PromptTooLongError, MediaError, EngineError, GuardError."""
        sampling = replace(self._settings.sampling, seed=self._seed)
        model, gbnf = self._runtime.model, self._plan.grammar
        with ExitStack() as owned:
            grammar = owned.enter_context(Grammar(gbnf, model.vocab_handle)) if gbnf else None
            chain = SamplerChain(sampling, n_vocab=model.n_vocab, grammar=grammar)
            sampler = owned.enter_context(chain)
            try:
                prefill = self._read_prompt(sampler)
            except PrefillCancelledError:
                yield self._cancelled_early()
                return
            score = self._prompt_score
            yield PrefillDone(
                n_prompt_tokens=prefill.n_prompt_tokens,
                n_media_tokens=prefill.n_media_tokens,
                n_reused_tokens=prefill.n_reused_tokens,
                prefill_s=prefill.elapsed_s,
                vector_active=self._vector is not None,
                # One that is no score is not told: the answer is refused for it.
                prompt_score=score if score is not None and is_score(score) else None,
                n_media_encoded=sum(not medium.from_cache for medium in self._plan.prepared),
                n_readings=self._n_readings,
            )
            yield from self._answer(prefill)

    # -- the prompt -------------------------------------------------------------------------------

    def _read_prompt(self, sampler: SamplerChain) -> PrefillStats:
        """Evaluate and score the prompt that is answered, and what was answered already."""
        started_s = time.perf_counter()
        items, so_far, given = list(self._plan.items), self._plan.so_far, self._plan.given
        # In the sequence still, and scored.
        known = so_far if so_far is not None and so_far.scores is not None else None
        has_score = known is not None and known.prompt_score is not None
        judging = None if has_score else self._guard
        sides, located, spans = list[SidePrompt](), dict[range, SidePrompt](), list[range]()
        if judging is not None and self._curves is not None:
            sides = side_prompts(self._plan.prompt, self._runtime)
        if judging is not None and judging.reads_message:
            located = sentence_spans(sides, items, self._engine.piece)
        if judging is not None or known is None:  # guard on or off, in the same batches
            spans = [message_span(items), *located]
        if known is not None and known.token_ids:
            items.append(TokenRun(known.token_ids))
            for token_id in known.token_ids:
                sampler.accept(token_id)
        prefill = self._prefill(items, sampler, spans)
        if given and self._engine.n_free < len(given) + self._n_spare:
            raise PromptTooLongError(
                f"the answer is to begin with {len(given)} tokens, and {self._engine.n_free} are "
                "free after the prompt; shorten either, or raise --ctx"
            )
        if judging is None:
            self._prompt_score = known.prompt_score if known is not None else None
        else:
            states = prefill.prompt_states
            if self._curves is not None:
                scores = map(float, judging.score_prompts(states[1:])) if located else ()
                in_place = dict(zip(located.values(), scores, strict=True))
                sides = sides_read(sides, items, in_place, self._curves)
            self._prompt_score = self._combined_score(judging, states[:1], sides)
            if not self._engine.has_prompt:  # it made way
                prefill = self._prefill(items, sampler, ())
        return replace(prefill, elapsed_s=time.perf_counter() - started_s)

    def _prefill(
        self, items: Sequence[PromptItem], sampler: SamplerChain, spans: Sequence[range]
    ) -> PrefillStats:
        """Evaluate the prompt: with a gated vector first without it, and again if that is harmful.

        The second look costs one token: the rest of the prompt is the same.
        """
        vector, plain = self._vector, None
        if vector is not None and self._vector_gate is not None:
            plain = self._engine.prefill(items, sampler, spans=spans, cancelled=self._cancelled)
            # By the probe that the gate was chosen with, also where prompts have one of their own.
            probe = self._guard.probe if self._guard else None
            if probe and probe.score(plain.last_state[np.newaxis, :])[0] <= self._vector_gate:
                self._vector = None
                return plain
        prefill = self._engine.prefill(
            items,
            sampler,
            control_vector=vector,
            steers_prompt=self._runtime.fixed_vector is not None
            and self._runtime.fixed_vector_steers_prompt,
            spans=spans if plain is None else (),
            cancelled=self._cancelled,
        )
        if plain is None:
            return prefill
        return replace(prefill, n_reused_tokens=plain.n_reused_tokens, span_means=plain.span_means)

    @property
    def _curves(self) -> ReadingCurves | None:
        """How rare scores of other readings are; None: the bundle knows no other readings."""
        return self._runtime.bundle.config.readings if self._runtime.bundle else None

    def _combined_score(
        self, judging: ActiveGuard, states: NDArray[np.float32], sides: Sequence[SidePrompt]
    ) -> float:
        """The prompt's score: of its own states, of other readings, and of words beside media.

        A picture beside words shifts the state at the prompt's end, and with it the score: an
        unrelated one must not hide what the words ask for.
        """
        prompt = self._plan.prompt
        alone = [
            alone_prompt(text, self._runtime) for text in media_texts(prompt, self._read_picture)
        ]
        self._n_readings = len(alone) + len(sides)
        scores = list(judging.score_prompts(states))
        if self._n_readings:
            prompts = [*alone, *(side.prompt for side in sides)]
            others = self._engine.side_prompt_states(prompts, cancelled=self._cancelled)
            scores += list(judging.score_prompts(others))
        n_plain = 1 + len(alone)
        typed = float(np.max(scores[:n_plain]))  # NaN, where one of them is
        if self._curves is None:
            return typed
        read: list[tuple[ReadingKind, float]] = [
            (side.reading.kind, float(score))
            for side, score in zip(sides, scores[n_plain:], strict=True)
        ]
        return combined_score(typed, read, self._curves)

    def _read_picture(self, medium: MediaContent) -> str:
        picture, reader = self._plan.media[medium.sha256], self._runtime.picture_reader
        return reader.words(picture) if reader and isinstance(picture, DecodedImage) else ""

    # -- the answer -------------------------------------------------------------------------------

    def _answer(self, prefill: PrefillStats) -> Iterator[Event]:
        engine, guard, plan = self._engine, self._guard, self._plan
        answer = GuardedAnswer(
            engine,
            guard,
            DecodingLimits(self._settings.max_tokens, self._n_spare),
            tokenize_plain=self._runtime.model.tokenize_plain,
            rng=np.random.default_rng(self._seed),
            cancelled=self._cancelled,
            carried_risk=plan.asked.carried_risk(guard.policy) if guard else 0.0,
            prompt_score=self._prompt_score,
            given=plan.given,
            so_far=plan.so_far,
        )
        n_passes_before = engine.n_forward_passes
        decode_started_s = time.perf_counter()
        first_text_s: float | None = None
        for event in self._told_apart(answer):
            if first_text_s is None and isinstance(event, TextDelta | Refused):
                first_text_s = time.perf_counter()
            yield event
        ended_s = time.perf_counter()
        message = self._keep(answer)
        decode_s = ended_s - decode_started_s
        yield TurnEnded(
            text=message.text,
            finish_reason=answer.finish_reason,
            guard=self._summary(answer),
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

    def _told_apart(self, answer: GuardedAnswer) -> Iterator[Event]:
        """The answer's events, with text that says whether it is reasoning or answer."""
        if self._reasoning is None:
            yield from answer.events()
            return
        splitter = ReasoningSplitter(self._reasoning)
        if self._plan.so_far is not None:
            splitter.feed(self._plan.so_far.text)
        for event in answer.events():
            if isinstance(event, TextDelta):
                yield from _deltas(splitter.feed(event.text))
                continue
            if isinstance(event, Refused):
                yield from _deltas(splitter.finish())
            yield event
        if _is_over(answer):  # else the rest of a mark may follow
            yield from _deltas(splitter.finish())

    def _keep(self, answer: GuardedAnswer) -> Message:
        """Add the answer to the history; its reasoning beside its text, not in it."""
        refusal_text = answer.refusal.text if answer.refusal else ""
        reasoning, text = self._split(
            answer.text.removesuffix(refusal_text), is_over=_is_over(answer)
        )
        text = text + refusal_text if text else refusal_text.lstrip("\n")
        if reasoning is None and text != answer.text:
            reasoning = ""
        message = replace(
            Message.from_text("assistant", text, token_ids=answer.token_ids), reasoning=reasoning
        )
        self.history = self._plan.asked.with_message(message, answer.conversation_risk)
        if answer.refusal is None:
            self.so_far = AnswerSoFar(
                answer.text, answer.token_ids, answer.kept_scores, prompt_score=self._prompt_score
            )
        return message

    def _split(self, text: str, *, is_over: bool) -> tuple[str | None, str]:
        """As it was told: reasoning and answer."""
        return self._reasoning.split(text, is_over=is_over) if self._reasoning else (None, text)

    def _cancelled_early(self) -> TurnEnded:
        """The end of a turn whose prompt was not read to its end."""
        elapsed_s, so_far = time.perf_counter() - self._plan.started_s, self._plan.so_far
        self._vector = None
        return TurnEnded(
            text=self._split(so_far.text, is_over=False)[1] if so_far else "",
            finish_reason="cancelled",
            guard=self._summary(None),
            usage=Usage(0, 0, 0, 0, 0),
            timings=Timings(elapsed_s, elapsed_s, 0.0, 0.0, 0.0),
        )

    def _summary(self, answer: GuardedAnswer | None) -> GuardSummary:
        """What the guard did; answer: None if it never began."""
        settings, bundle = self._settings, self._runtime.bundle
        scores = answer.scores if answer else ()
        return GuardSummary(
            mode=settings.guard,
            rerank=settings.rerank if settings.guard == "steer" else None,
            bundle=bundle.config.name if bundle and settings.guard != "off" else None,
            interventions=answer.n_interventions if answer else 0,
            evaluated_candidates=answer.n_evaluated_candidates if answer else 0,
            max_score=max(scores, default=None),
            mean_score=sum(scores) / len(scores) if scores else None,
            risk=answer.conversation_risk if answer else None,
            refused=answer is not None and answer.refusal is not None,
            vector_active=self._vector is not None,
            steered=answer.n_steered if answer else 0,
            opening=answer.opening if answer else "",
        )


def _alignment_vector(
    settings: TurnSettings, bundle: GuardBundle, conversation: Conversation
) -> NDArray[np.float32] | None:
    """The alignment vector while media are in the context; None for pure text."""
    if settings.guard not in ("steer", "refuse"):
        return None
    kinds = {item.kind for message in conversation for item in message.media}
    vectors = (bundle.vector_for(kind) for kind in ("image", "audio") if kind in kinds)
    return next((vector.directions for vector in vectors if vector is not None), None)


def _is_over(answer: GuardedAnswer) -> bool:
    """Whether it cannot be gone on with."""
    return answer.finish_reason in ("stop", "refused")


def _deltas(pieces: Sequence[TextPiece]) -> Iterator[TextDelta]:
    for piece in pieces:
        yield TextDelta(piece.text, piece.part, piece.start)
