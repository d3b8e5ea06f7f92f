"""Harvesting text many requests at once: what is known beforehand is read, answers are decoded.

What comes is what `answers.answers_to` gives for the same pieces, but for the shape of batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import DEFAULT_N_BATCH, ContextSettings
from safesteer_edge.engine.many_sequences import KnownText, ManySequences, OpenAnswer
from safesteer_edge.engine.prompt_items import TextPrompt, text_prompt
from safesteer_edge.formats.gguf_header import GGML_TYPE_OF_KV
from safesteer_edge.harvest.answers import AnswerKind, HarvestedAnswer, HarvestPlan, harvested
from safesteer_edge.harvest.carriers import Carrier, carried_items
from safesteer_edge.processes.cores import n_usable_cores
from safesteer_edge.requests.requests import Request
from safesteer_edge.session.settings import SessionSettings

if TYPE_CHECKING:
    from safesteer_edge.session.runtime import Runtime

# More rows of one decoding step are hardly cheaper each, and all attend over each other's cells.
_N_SEQUENCES: Final = 32


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, how it comes, and what each answer to it begins with (`answers.forced_texts`)."""

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
