"""Many short sequences at once that begin alike: states of known tokens, and greedy answers.

For calibration, on a context of its own. What is known beforehand is evaluated in prefill shape,
answers are decoded a row for each sequence; the template's beginning is evaluated once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import ContextSettings, NativeContext
from safesteer_edge.engine.hidden_states import (
    EvalCallbackRoute,
    HiddenStateRoute,
    SpanMeans,
    choose_route,
)
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.prompt_items import TextPrompt
from safesteer_edge.errors import EngineError, PromptTooLongError

_SHARED: Final = 0  # the sequence that holds what all prompts begin with
_Job = TypeVar("_Job", bound="KnownText | OpenAnswer")


@dataclass(frozen=True, slots=True)
class KnownText:
    """A prompt, and what may follow it: at least one continuation, which may be empty."""

    prompt: TextPrompt
    continuations: Sequence[Sequence[int]] = ((),)

    @property
    def n_sequences(self) -> int:
        return len(self.continuations)

    @property
    def n_tokens(self) -> int:
        """Cells that it may take."""
        return len(self.prompt.token_ids) + sum(1 + len(each) for each in self.continuations)


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """A prompt to be answered in at most `n_answer_tokens`, the first of them given."""

    prompt: TextPrompt
    n_answer_tokens: int
    given: Sequence[int] = ()
    n_sequences = 1

    @property
    def n_tokens(self) -> int:
        """Cells that it may take."""
        return len(self.prompt.token_ids) + self.n_answer_tokens


@dataclass(frozen=True, slots=True)
class _Row:
    token_id: int
    position: int
    sequence: int


class ManySequences:
    """Not thread-safe. The model outlives it; close it after its last use."""

    def __init__(
        self,
        model: NativeModel,
        architecture: str,
        layers: Sequence[int],
        settings: ContextSettings,
    ) -> None:
        """layers: of inner blocks, whose states come back joined in this order; none: no states.

        settings: its `n_candidates` is how many sequences there are at once, its `n_ctx` the
        tokens of them all. Raises EngineError for a model with a recurrent state: its batches are
        cut and sorted anew inside llama.cpp, and rows would come back in another order.
        """
        if model.has_recurrent_state:
            raise EngineError("a model with a recurrent state reads one sequence at a time")
        self._model = model
        self._route = (
            choose_route(architecture, model.n_layer, layers) if layers else HiddenStateRoute()
        )
        callback = self._route.callback if isinstance(self._route, EvalCallbackRoute) else None
        self._context = NativeContext(model, settings, eval_callback=callback)
        self._route.attach(self._context)
        self._shared: Sequence[int] = ()

    def close(self) -> None:
        """Free the context. Idempotent."""
        self._context.close()

    def read(
        self, texts: Iterable[KnownText]
    ) -> Iterator[tuple[NDArray[np.float32], list[NDArray[np.float32]]]]:
        """Of each text the mean state of its message, and its continuations' states.

        For each continuation: float32 (1 + n_tokens, n_features), the prompt's last token first.
        Texts are taken as they are needed, and come back in order, a batch at a time.
        Raises PromptTooLongError, EngineError.
        """
        for group in self._grouped(texts):
            n_each = [text.n_sequences for text in group]
            starts, means = self._begin([text.prompt for text in group], n_each)
            rows: list[_Row] = []
            for text, first in zip(group, starts, strict=True):
                for sequence, after in enumerate(text.continuations, start=first):
                    # The last token once for each: as in a chat it does not go with the prompt's.
                    tokens = (text.prompt.token_ids[-1], *after)
                    position = len(text.prompt.token_ids) - 1
                    rows += [_Row(t, position + at, sequence) for at, t in enumerate(tokens)]
            lengths = [1 + len(after) for text in group for after in text.continuations]
            states = iter(np.split(self._states(rows), np.cumsum(lengths)[:-1]))
            found = [list(itertools.islice(states, n)) for n in n_each]
            ends = np.array([each[0][0] for each in found])
            yield from zip(means.means(ends), found, strict=True)

    def answer(
        self, questions: Iterable[OpenAnswer]
    ) -> Iterator[tuple[list[int], NDArray[np.float32], NDArray[np.float32]]]:
        """Of each its greedy answer's tokens, their states, and the mean state of its message.

        States: float32 (1 + n_tokens, n_features); row 0 is the prompt's last position. An answer
        that ends holds its end token. Questions are taken as they are needed, and come back in
        order, a batch at a time.
        """
        for group in self._grouped(questions):
            _, means = self._begin([question.prompt for question in group], [1] * len(group))
            answers: list[list[int]] = [[] for _ in group]
            states: list[list[NDArray[np.float32]]] = [[] for _ in group]
            live = list(range(len(group)))
            while live:
                rows = [
                    _Row(
                        (answers[at] or group[at].prompt.token_ids)[-1],
                        len(group[at].prompt.token_ids) - 1 + len(answers[at]),
                        1 + at,
                    )
                    for at in live
                ]
                going_on: list[int] = []
                for row, (at, state) in enumerate(
                    zip(live, self._states(rows, with_logits=True), strict=True)
                ):
                    question, answer = group[at], answers[at]
                    states[at].append(state)
                    is_over = bool(answer) and self._model.is_end_of_generation(answer[-1])
                    if is_over or len(answer) == question.n_answer_tokens:
                        continue
                    given = question.given[len(answer) :]
                    answer.append(given[0] if given else int(self._context.logits(row).argmax()))
                    going_on.append(at)
                live = going_on
            found = [np.array(each) for each in states]
            ends = np.array([each[0] for each in found])
            yield from zip(answers, found, means.means(ends), strict=True)

    # -- batches --------------------------------------------------------------------------------

    def _grouped(self, jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
        """As many of them as there are sequences and cells for."""
        group: list[_Job] = []
        n_sequences = n_tokens = 0
        for job in jobs:
            if job.n_tokens > self._context.n_ctx or job.n_sequences > self._context.n_candidates:
                raise PromptTooLongError(
                    f"a request of {job.n_tokens} tokens in {job.n_sequences} answers; the context "
                    f"holds {self._context.n_ctx} in {self._context.n_candidates}: raise --ctx"
                )
            n_sequences, n_tokens = n_sequences + job.n_sequences, n_tokens + job.n_tokens
            if n_sequences > self._context.n_candidates or n_tokens > self._context.n_ctx:
                yield group
                group, n_sequences, n_tokens = [], job.n_sequences, job.n_tokens
            group.append(job)
        if group:
            yield group

    def _begin(
        self, prompts: Sequence[TextPrompt], n_each: Sequence[int]
    ) -> tuple[list[int], SpanMeans]:
        """Evaluate prompts but for their last tokens, each on so many sequences: the first of each.

        Also their messages' mean states. What other prompts left on the sequences is removed.
        """
        context = self._context
        self._route.before_prefill()
        for sequence in range(1, context.n_candidates + 1):
            context.remove_from_sequence(sequence)
        first_ids = prompts[0].token_ids
        n_shared = min(
            min(_n_common(first_ids, prompt.token_ids), prompt.n_sharable) for prompt in prompts
        )
        shared = first_ids[:n_shared]
        n_kept = _n_common(self._shared, shared)
        context.remove_from_sequence(_SHARED, n_kept, -1)
        self._shared = shared[:n_kept]
        if not n_kept and shared:
            self._evaluate([_Row(token, at, _SHARED) for at, token in enumerate(shared)])
            self._shared = shared
        firsts = [1 + sum(n_each[:index]) for index in range(len(prompts))]
        rows: list[_Row] = []
        for prompt, first in zip(prompts, firsts, strict=True):
            context.copy_sequence(_SHARED, first)
            n_before = len(self._shared)
            after = prompt.token_ids[n_before:-1]
            rows += [_Row(token_id, n_before + at, first) for at, token_id in enumerate(after)]
        means = SpanMeans(list(zip(firsts, (prompt.message for prompt in prompts), strict=True)))
        self._route.before_reading(self._context.n_batch)
        self._evaluate(rows, means)
        for first, n in zip(firsts, n_each, strict=True):
            for sequence in range(first + 1, first + n):
                context.copy_sequence(first, sequence)
        self._route.before_answer()
        return firsts, means

    def _evaluate(self, rows: Sequence[_Row], means: SpanMeans | None = None) -> None:
        for start in range(0, len(rows), self._context.n_batch):
            part = rows[start : start + self._context.n_batch]
            self._decode(part, has_outputs=means is not None and self._route.needs_outputs)
            if means is not None:
                sequences, places = [r.sequence for r in part], [r.position for r in part]
                means.add(sequences, places, self._route.read(len(part)))

    def _states(self, rows: Sequence[_Row], *, with_logits: bool = False) -> NDArray[np.float32]:
        """States of all rows: (n_rows, n_features). with_logits: one batch, whose logits stay."""
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), self._context.n_batch):
            part = rows[start : start + self._context.n_batch]
            self._decode(part, has_outputs=with_logits or self._route.needs_outputs)
            parts.append(self._route.read(len(part)))
        return np.concatenate(parts)

    def _decode(self, rows: Sequence[_Row], *, has_outputs: bool) -> None:
        self._context.decode(
            [row.token_id for row in rows],
            [row.position for row in rows],
            [row.sequence for row in rows],
            n_outputs=len(rows) if has_outputs else 0,
        )


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))
