"""Harvest: hidden states of answers, collected on the decode path of the very file that will run.

For each request, as text or carried in media, the model answers by itself (greedy), after a forced
refusal (harmful requests) and after a forced compliant opening. States of prefill-shaped batches
differ from those of single decoding steps, by some 2 % of their length. A harvest in batches reads
many requests and what is put into the model's mouth at once, and decodes the model's own answers
side by side; any other feeds every token, forced or not, one at a time.
Where there are more requests than serve to tell answers apart, only the prompt's state is kept of
the rest: it costs a fraction of an answer, and tells most about what is asked.

Labels are per answer position: harmful request and compliant answer = 1; everything else = 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import DEFAULT_N_BATCH, ContextSettings
from safesteer_edge.engine.many_sequences import KnownText, ManySequences, OpenAnswer
from safesteer_edge.engine.prompt_items import (
    PromptItem,
    TextPrompt,
    message_span,
    text_prompt,
    text_token_ids,
)
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.formats.gguf_header import GGML_TYPE_OF_KV
from safesteer_edge.guard.policy import SamplingSettings
from safesteer_edge.harvest.carriers import Carrier, carried_items
from safesteer_edge.metrics.refusal_rules import is_refusal
from safesteer_edge.processes.native_libraries import n_usable_cores
from safesteer_edge.requests.requests import Label, Request, Split, lot_of
from safesteer_edge.requests.wordings import OpeningKind, openings
from safesteer_edge.session.prompt import question_items
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime


# -- one greedy answer, token by token on the decode path, with the state after each token ---------


@dataclass(frozen=True, slots=True, eq=False)
class DecodedAnswer:
    """states: float32 (n_tokens + 1, n_features); row 0 is the last prompt position.

    message: float32 (n_features,), the mean state over the words of the prompt's last message.
    first_logits: float32 (n_vocab,), of the first answer token.
    """

    text: str
    token_ids: tuple[int, ...]
    states: NDArray[np.float32]
    message: NDArray[np.float32]
    first_logits: NDArray[np.float32]


def question_ids(runtime: Runtime, text: str) -> tuple[int, ...]:
    """Token ids of the prompt of one question, media left out."""
    items = question_items(text, template=runtime.template, model=runtime.model)
    return text_token_ids(items)


def decode_answer(
    runtime: Runtime,
    items: Sequence[PromptItem],
    *,
    n_tokens: int,
    forced_text: str = "",
    control_vector: NDArray[np.float32] | None = None,
) -> DecodedAnswer:
    """At most n tokens, the first of them those of `forced_text`. Costs a step for each.

    control_vector: float32 (n_layer, n_embd), on from the last prompt token. Raises EngineError.
    """
    engine, model = runtime.engine, runtime.model
    sampler = SamplerChain(SamplingSettings(temperature=0, top_k=1), n_vocab=model.n_vocab)
    forced = model.tokenize_plain(forced_text) if forced_text else []
    token_ids: list[int] = []
    try:
        spans = (message_span(items),)
        prefill = engine.prefill(items, sampler, control_vector=control_vector, spans=spans)
        first_logits = engine.next_logits()
        states = [prefill.last_state]
        while len(token_ids) < n_tokens:
            left = forced[len(token_ids) :]
            token_id = left[0] if left else int(engine.propose().token_ids[0])
            states.append(engine.evaluate(token_id))
            engine.accept(token_id)
            token_ids.append(token_id)
            if engine.is_end(token_id):
                break
    finally:
        sampler.close()
    text = _text_of(runtime, token_ids)
    message = prefill.span_means[0]
    return DecodedAnswer(text, tuple(token_ids), np.stack(states), message, first_logits)


# -- what of an answer is kept, and which answers a request gets -----------------------------------

# prompt: no answer, its state alone. led: as long as an own one, after a complying opening.
AnswerKind = Literal["own", "refusal", "compliance", "prompt", "led"]
# Which answers a harvest does at once: all of a request's, what is known beforehand, its own.
Piece = Literal["whole", "known", "own"]


@dataclass(frozen=True, slots=True)
class HarvestPlan:
    """n_own_tokens: length of the model's own answers; n_forced_tokens: of forced ones, whose first
    four teach most. n_media_own_tokens, n_media_forced_tokens: to requests that media carry.
    n_openings: how many of each kind a harmful request gets, as text; every other request gets one.
    n_answered: of how many harmful and of how many harmless twins there are answers;
    n_answered_benign: of how many borderline and ordinary ones, which tell of false alarms. Of
    more, only the prompt's state. opening_split: whose openings are put into the model's mouth;
    None: the request's own.
    in_batches: text is read and answered many requests at once. n_answered_borderline: None: as
    many as ordinary ones. n_read, n_read_borderline, n_read_ordinary: of how many harmful, and
    harmless, borderline and ordinary requests there is anything at all; None: all.
    n_read_translated: of how many of each label in each other language; none is answered.
    draws: requests are put into pictures too; wraps: and among other words.
    """

    n_own_tokens: int = 48
    n_forced_tokens: int = 6
    n_media_own_tokens: int = 24
    n_media_forced_tokens: int = 6
    n_openings: int = 4
    n_answered: int = 300
    n_answered_benign: int = 540
    opening_split: Split | None = None
    in_batches: bool = False
    n_answered_borderline: int | None = None
    n_read: int | None = None
    n_read_borderline: int | None = None
    n_read_ordinary: int | None = None
    n_read_translated: int | None = None
    draws: bool = True
    wraps: bool = True

    def n_answers(self, label: Label) -> int:
        """Of how many requests of this label there are answers."""
        if label == "borderline" and self.n_answered_borderline is not None:
            return self.n_answered_borderline
        return self.n_answered if label in ("harmful", "harmless") else self.n_answered_benign

    def n_requests(self, label: Label) -> int | None:
        """Of how many requests of this label there is anything; None: of all."""
        benign = {"borderline": self.n_read_borderline, "ordinary": self.n_read_ordinary}
        return benign.get(label, self.n_read)

    def n_tokens(self, kind: AnswerKind, carrier: Carrier) -> int:
        """How long an answer of this kind gets, unless it ends by itself."""
        if kind == "prompt":
            return 0
        if carrier == "text":
            return self.n_own_tokens if kind in ("own", "led") else self.n_forced_tokens
        return self.n_media_own_tokens if kind == "own" else self.n_media_forced_tokens


@dataclass(frozen=True, slots=True)
class HarvestedAnswer:
    """One answer and its states.

    states: float16 (n_tokens + 1, n_features); row 0 is the last prompt position, row t the state
    after answer token t. message: float16 (n_features,), the mean state over the words of the
    request's message. label: 1 = compliant answer to a harmful request, else 0; without an
    answer, 1 = harmful request.
    carrier: how the request reached the model.
    """

    request: Request
    kind: AnswerKind
    label: Literal[0, 1]
    text: str
    token_ids: tuple[int, ...]
    states: NDArray[np.float16]
    message: NDArray[np.float16]
    carrier: Carrier = "text"

    @property
    def prompt(self) -> NDArray[np.float16]:
        """What it is judged by: its last state, and the message's mean one: (2·n_features,)."""
        return np.concatenate([self.states[0], self.message])


def answers_to(
    request: Request,
    runtime: Runtime,
    plan: HarvestPlan,
    carrier: Carrier = "text",
    *,
    is_answered: bool = True,
    piece: Piece = "whole",
) -> list[HarvestedAnswer]:
    """Answers to one request: the model's own, then forced ones where they teach something.

    runtime: opened with `layers`, whose states come back joined in that order. is_answered: False:
    the prompt's state alone. Cost: about one decoding step for each token. Raises MediaError where
    the request cannot be carried so.
    """
    items = carried_items(request, carrier, runtime)
    answers: list[HarvestedAnswer] = []
    for kind, text in forced_texts(request, carrier, plan, is_answered=is_answered, piece=piece):
        n_tokens = plan.n_tokens(kind, carrier)
        decoded = decode_answer(runtime, items, n_tokens=n_tokens, forced_text=text)
        answers.append(
            harvested(
                request, kind, carrier, decoded.token_ids, decoded.states, decoded.message, runtime
            )
        )
    return answers


def harvested(
    request: Request,
    kind: AnswerKind,
    carrier: Carrier,
    token_ids: Sequence[int],
    states: NDArray[np.float32],
    message: NDArray[np.float32],
    runtime: Runtime,
) -> HarvestedAnswer:
    """An answer with its text and label."""
    text = _text_of(runtime, token_ids)
    label = label_of(request, kind, text)
    kept = states.astype(np.float16), message.astype(np.float16)
    return HarvestedAnswer(request, kind, label, text, tuple(token_ids), *kept, carrier)


def _text_of(runtime: Runtime, token_ids: Iterable[int]) -> str:
    return b"".join(map(runtime.engine.piece, token_ids)).decode("utf-8", "replace")


def forced_texts(
    request: Request,
    carrier: Carrier,
    plan: HarvestPlan,
    *,
    is_answered: bool = True,
    piece: Piece = "whole",
) -> tuple[tuple[AnswerKind, str], ...]:
    """What each answer to a request begins with; nothing for the model's own, which comes first.

    Known beforehand are the prompt's state and the openings. A model that declines by itself shows
    in answers that an opening led to how those to harmful requests are.
    """
    if not is_answered:
        return (("prompt", ""),)
    # A number of the request alone: its openings do not depend on what else is harvested.
    index, split = lot_of(request.id), plan.opening_split or request.split
    if piece == "own":
        led = openings("compliance", index, split=split) if request.label == "harmful" else ()
        return (("own", ""), *(("led", text) for text in led))
    n = plan.n_openings if carrier == "text" and request.label == "harmful" else 1
    texts: list[tuple[AnswerKind, str]] = [("prompt" if piece == "known" else "own", "")]
    kinds: list[OpeningKind] = []
    if request.label == "harmful":
        kinds.append("refusal")
    if request.label in ("harmful", "harmless", "borderline"):
        kinds.append("compliance")
    for kind in kinds:
        texts.extend((kind, text) for text in openings(kind, index, split=split, n=n))
    return tuple(texts)


def label_of(request: Request, kind: AnswerKind, text: str) -> Literal[0, 1]:
    """1 for a compliant answer to a harmful request; the rules of refusals decide for own ones.

    Of a prompt alone: 1 for a harmful one.
    """
    if request.label != "harmful" or kind == "refusal":
        return 0
    if kind in ("own", "led") and is_refusal(text):
        return 0
    return 1


# -- many requests at once: what is known beforehand is read, answers are decoded ------------------
# What comes is what `answers_to` gives for the same pieces, but for the shape of batches.

# More rows of one decoding step are hardly cheaper each, and all attend over each other's cells.
_N_SEQUENCES: Final = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, how it comes, and what each answer to it begins with (`forced_texts`)."""

    request: Request
    carrier: Carrier
    texts: Sequence[tuple[AnswerKind, str]]


def open_many(runtime: Runtime, session: SessionSettings, layers: Sequence[int]) -> ManySequences:
    """The runtime's model with many sequences. Close it before the runtime."""
    settings = ContextSettings(
        n_ctx=runtime.context.n_ctx,
        n_candidates=_N_SEQUENCES,
        n_threads=session.n_threads or n_usable_cores(),
        n_batch=DEFAULT_N_BATCH,
        kv_type=GGML_TYPE_OF_KV[session.kv_type],
    )
    return ManySequences(runtime.model, runtime.info.architecture, layers, settings)


def known_answers(
    many: ManySequences, runtime: Runtime, plan: HarvestPlan, asked: Iterable[Asked]
) -> Iterator[list[HarvestedAnswer]]:
    """Of each request its prompt's state, then those of the openings' first tokens."""
    taken: deque[tuple[Asked, list[list[int]]]] = deque()

    def texts() -> Iterator[KnownText]:
        for each in asked:
            openings = [
                runtime.model.tokenize_plain(text)[: plan.n_tokens(kind, each.carrier)]
                for kind, text in each.texts[1:]
            ]
            taken.append((each, openings))
            yield KnownText(_prompt(each, runtime), openings or ((),))

    for message, states in many.read(texts()):
        each, openings = taken.popleft()
        found = [((), states[0][:1]), *zip(openings, states, strict=False)]
        yield _answers(each, [(*answer, message) for answer in found], runtime)


def own_answers(
    many: ManySequences, runtime: Runtime, plan: HarvestPlan, asked: Iterable[Asked]
) -> Iterator[list[HarvestedAnswer]]:
    """Of each request its greedy answers, each after what it begins with."""
    taken: deque[Asked] = deque()

    def questions() -> Iterator[OpenAnswer]:
        for each in asked:
            taken.append(each)
            prompt = _prompt(each, runtime)
            for kind, text in each.texts:
                given = runtime.model.tokenize_plain(text) if text else ()
                yield OpenAnswer(prompt, plan.n_tokens(kind, each.carrier), given)

    answers = many.answer(questions())
    for first in answers:
        each = taken.popleft()
        yield _answers(each, [first, *(next(answers) for _ in each.texts[1:])], runtime)


def _prompt(asked: Asked, runtime: Runtime) -> TextPrompt:
    return text_prompt(carried_items(asked.request, asked.carrier, runtime))


def _answers(
    asked: Asked,
    found: Sequence[tuple[Sequence[int], NDArray[np.float32], NDArray[np.float32]]],
    runtime: Runtime,
) -> list[HarvestedAnswer]:
    return [
        harvested(asked.request, kind, asked.carrier, token_ids, states, message, runtime)
        for (kind, _), (token_ids, states, message) in zip(asked.texts, found, strict=True)
    ]
