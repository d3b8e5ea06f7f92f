"""The decoding engine over llama.cpp: a prompt, candidates one token ahead, roll-back.

Implements `guard.protocols.DecodingEngine`. The main sequence is 0; candidates of a step lie
on side sequences that share its cells. Not thread-safe: one thread decodes, any may cancel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import MAIN_SEQUENCE, NativeContext
from safesteer_edge.engine.hidden_states import MAX_ROWS_READ, HiddenStateRoute, SpanMeans
from safesteer_edge.engine.main_sequence import (
    MainSequence,
    PrefillCancelledError,
    to_entries,
)
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import PromptItem, TextPrompt
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import EngineError, SafeSteerError
from safesteer_edge.guard.policy import N_LOOKED_AHEAD
from safesteer_edge.guard.protocols import Block, Proposal

_SIDE_SEQUENCE = MAIN_SEQUENCE + 1  # the first candidate's, between two steps


@dataclass(frozen=True, slots=True)
class PrefillStats:
    """What a prefill did. last_state: float32 (n_features,), at the last prompt token.

    span_means: float32 (n_spans, n_features), the mean states of the spans that were asked for.
    """

    n_prompt_tokens: int
    n_media_tokens: int
    n_reused_tokens: int
    elapsed_s: float
    last_state: NDArray[np.float32]
    span_means: NDArray[np.float32]

    @property
    def prompt_states(self) -> NDArray[np.float32]:
        """What prompts are judged by, (n, 2, n_features): the last state, and each span's mean.

        Without spans the last state takes a mean's place.
        """
        last = self.last_state[np.newaxis]
        means = self.span_means if len(self.span_means) else last
        return np.stack([np.repeat(last, len(means), axis=0), means], axis=1)


@dataclass(slots=True)
class _Pending:
    """A candidate that was evaluated at this step. logits: None while still in native memory.

    row: of its last token in the last batch.
    """

    sequence: int
    row: int
    logits: NDArray[np.float32] | None = None


class LlamaEngine:
    """One conversation's KV cache and the step-by-step view of it that guarded decoding uses.

    A `DecodingEngine`; what its methods promise stands there.
    """

    def __init__(
        self,
        context: NativeContext,
        route: HiddenStateRoute | None,
        *,
        projector: Projector | None = None,
        spoken: Collection[int] = (),
    ) -> None:
        """route: None reads no hidden states: they come back with zero features.

        spoken: control tokens that stand for their text in an answer, as marks of reasoning do.
        The caller owns context and projector and closes them after the engine's last use.
        """
        self._context = context
        self._model: NativeModel = context.model
        self._route = route or HiddenStateRoute()
        self._sequence = MainSequence(context, self._route, projector)
        self._spoken = frozenset(spoken)
        self._pending: dict[Block, _Pending] = {}
        self._kept_logits: NDArray[np.float32] | None = None
        self._sampler: SamplerChain | None = None
        self._n_forward_passes = 0

    def prefill(
        self,
        items: Sequence[PromptItem],
        sampler: SamplerChain,
        *,
        control_vector: NDArray[np.float32] | None = None,
        steers_prompt: bool = False,
        spans: Sequence[range] = (),
        cancelled: Callable[[], bool] = lambda: False,
    ) -> PrefillStats:
        """Bring the main sequence to `items`, keeping what it shares with them, ready to propose.

        The prompt is evaluated without the control vector; its last token is held out and evaluated
        with the vector on, so that it shapes the first answer token. Tokens of earlier answers that
        are still in the cache stay as they were evaluated.

        control_vector: float32 (n_layer, n_embd), or None for off. steers_prompt: it is on for the
        whole prompt instead, and the cache of a prompt that was evaluated otherwise is not reused.
        spans: runs of tokens, by their places among the prompt's tokens and media, whose mean
        states are wanted; from where one begins nothing is reused.
        Raises PromptTooLongError, MediaError, EngineError, PrefillCancelledError.
        """
        started_s = time.perf_counter()
        entries = to_entries(items)
        self._sampler = sampler
        self._discard_pending()
        self._kept_logits = None
        # The last run is the template's, and opens the answer: some templates write it otherwise
        # in the history (`<think>`), so that the next prompt has in common what is before it.
        n_lasting = len(entries) - (len(to_entries(items[-1:])) if items else 0)
        n_reused_tokens, last_state, span_means = self._sequence.bring_to(
            entries,
            n_lasting=n_lasting,
            control_vector=control_vector,
            steers_prompt=steers_prompt,
            cancelled=cancelled,
            spans=spans,
        )
        return PrefillStats(
            n_prompt_tokens=sum(entry.n_tokens for entry in entries),
            n_media_tokens=sum(entry.n_tokens for entry in entries if entry.media),
            n_reused_tokens=n_reused_tokens,
            elapsed_s=time.perf_counter() - started_s,
            last_state=last_state,
            span_means=span_means,
        )

    @property
    def n_room(self) -> int:
        """Tokens that a prompt can have."""
        return self._sequence.n_room

    def check_fits(self, items: Sequence[PromptItem]) -> None:
        """Raise PromptTooLongError where `prefill` would; nothing is evaluated."""
        self._sequence.check_fits(to_entries(items))

    def side_prompt_states(
        self, prompts: Sequence[TextPrompt], *, cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """States of prompts of their own: float32 (n_prompts, 2, n_features).

        Of each the one at its last token, and the mean one of its message.

        They are evaluated on side sequences, many at once, without a control vector, and leave
        nothing behind: the main sequence goes on where it was. What a prompt begins with as the
        main one does costs nothing. Where the context has no room, the main sequence makes way
        (`has_prompt` tells), and is to be evaluated again.
        Raises PromptTooLongError, EngineError, PrefillCancelledError.
        """
        self._discard_pending()
        kept_logits = None
        if self._kept_logits is not None or self._sequence.logits_row is not None:
            kept_logits = self._logits().copy()
        self._forget_logits()
        self._context.set_control_vector(None)
        states: list[NDArray[np.float32]] = []
        try:
            for group in self._side_groups(prompts):
                states.append(self._read_aside(group, cancelled))
        finally:
            self._route.before_answer()
            self._sequence.set_vector_of_answer()
            self._kept_logits = kept_logits if self.has_prompt else None
        return np.concatenate(states)

    def forget(self) -> None:
        """Hold nothing, as before the first prompt."""
        self._discard_pending()
        self._forget_logits()
        self._sequence.forget()

    @property
    def has_prompt(self) -> bool:
        """Whether the main sequence holds anything."""
        return self._sequence.n_tokens > 0

    def _side_groups(self, prompts: Sequence[TextPrompt]) -> Iterator[list[TextPrompt]]:
        """As many at once as there are sequences and cells for."""
        n_most = 1 if self._model.has_recurrent_state else self._context.n_candidates
        group: list[TextPrompt] = []
        n_cells = 0
        for prompt in prompts:
            n_own = len(prompt.token_ids) - self._n_shared_aside(prompt)
            if group and (len(group) == n_most or n_cells + n_own > self.n_free):
                yield group
                group, n_cells = [], 0
            if n_own > self.n_free:
                self._sequence.forget()
                n_own = len(prompt.token_ids)
            group.append(prompt)
            n_cells += n_own
        if group:
            yield group

    def _n_shared_aside(self, prompt: TextPrompt) -> int:
        """Tokens at its beginning whose cells are the main sequence's too; none of its message."""
        if self._model.has_recurrent_state:
            return 0
        return min(self._sequence.n_shared_with(prompt.token_ids), prompt.n_sharable)

    def _read_aside(
        self, prompts: Sequence[TextPrompt], cancelled: Callable[[], bool]
    ) -> NDArray[np.float32]:
        context = self._context
        sequences = range(_SIDE_SEQUENCE, _SIDE_SEQUENCE + len(prompts))
        rows: list[tuple[int, int, int]] = []
        means = SpanMeans(list(zip(sequences, (p.message for p in prompts), strict=True)))
        try:
            for sequence, prompt in zip(sequences, prompts, strict=True):
                n_shared = self._n_shared_aside(prompt)
                if n_shared:
                    context.copy_sequence(MAIN_SEQUENCE, sequence, 0, n_shared)
                places = range(n_shared, len(prompt.token_ids) - 1)
                rows += [(prompt.token_ids[at], at, sequence) for at in places]
            self._route.before_reading(min(len(rows), context.n_batch))
            for start in range(0, len(rows), context.n_batch):
                if cancelled():
                    raise PrefillCancelledError("stopped while the prompt was being read")
                part = rows[start : start + context.n_batch]
                token_ids, places, of = zip(*part, strict=True)
                n_outputs = len(part) if self._route.needs_outputs else 0
                context.decode(token_ids, places, of, n_outputs=n_outputs)
                means.add(of, places, self._route.read(len(part)))
            # A prompt's last token does not go with the others: as in the main sequence.
            ends = [
                (prompt.token_ids[-1], len(prompt.token_ids) - 1, sequence)
                for sequence, prompt in zip(sequences, prompts, strict=True)
            ]
            self._route.before_answer()
            if cancelled():
                raise PrefillCancelledError("stopped while the prompt was being read")
            n_outputs = len(ends) if self._route.needs_outputs else 0
            context.decode(*zip(*ends, strict=True), n_outputs=n_outputs)
            return means.beside(self._route.read(len(ends)))
        finally:
            for sequence in sequences:
                context.remove_from_sequence(sequence)

    # -- one decoding step ----------------------------------------------------------------------

    @property
    def n_free(self) -> int:
        return self._context.n_ctx - self._sequence.n_tokens

    @property
    def candidates_at_once(self) -> int:
        """Candidates that are worth one batch when a bound may spare the next ones.

        On a CPU 2, 4 and 8 rows cost 2.4, 4.1 and 6.6 passes (measured, SmolLM2-135M Q4_1, one
        core), so each is looked at before the next; on a GPU rows of one batch are nearly free.
        """
        return self._context.n_candidates if self._model.is_offloaded else 1

    @property
    def n_forward_passes(self) -> int:
        return self._n_forward_passes

    def propose(self) -> Proposal:
        """Run the sampler chain on the logits after the last accepted token."""
        if self._sampler is None:
            raise EngineError("no prompt has been evaluated yet")
        return self._sampler.propose(self._logits())

    def next_logits(self) -> NDArray[np.float32]:
        """The logits after the last accepted token: float32 (n_vocab,), a copy. For measurements.

        Raises EngineError where `propose` would.
        """
        return self._logits().copy()

    def _logits(self) -> NDArray[np.float32]:
        row = self._sequence.logits_row
        if self._kept_logits is not None:
            return self._kept_logits
        if row is None or self._pending:
            raise EngineError(
                "there are no logits after the last accepted token: accept a candidate, or append "
                "tokens, before the next proposal"
            )
        return self._context.logits(row)

    def evaluate(self, token_id: int) -> NDArray[np.float32]:
        """Evaluate one candidate, on the main sequence where its cell can be taken back."""
        if self._model.has_recurrent_state or self._pending:
            return self.evaluate_candidates([token_id])[0]
        position = self._sequence.position
        self._context.decode([token_id], [position], [MAIN_SEQUENCE], n_outputs=1)
        self._n_forward_passes += 1
        self._pending[token_id,] = _Pending(MAIN_SEQUENCE, row=0)
        self._forget_logits()
        return self._route.read(1)[0]

    def evaluate_candidates(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate candidates in one batch, each on its own side sequence."""
        return self._evaluate_aside([(token_id,) for token_id in token_ids])

    def evaluate_blocks(self, blocks: Sequence[Block]) -> list[NDArray[np.float32]]:
        """Evaluate blocks, each on its own side sequence, as many at once as can be read."""
        # llama.cpp would deal sequences of different lengths out to several graphs (split_equal).
        is_alone = self._model.has_recurrent_state
        batches: list[list[Block]] = []
        for block in blocks:
            n_rows = sum(map(len, batches[-1])) + len(block) if batches else 0
            if not batches or is_alone or n_rows > MAX_ROWS_READ:
                batches.append([])
            batches[-1].append(block)
        states: list[NDArray[np.float32]] = []
        for batch in batches:
            ends = np.cumsum([len(block) for block in batch])[:-1]
            states += np.split(self._evaluate_aside(batch), ends)
        return states

    def look_ahead(self, n_tokens: int) -> tuple[Proposal, list[NDArray[np.float32]]]:
        """Let each of the likeliest go on, on its own side sequence: a batch for each token."""
        if self._sampler is None:
            raise EngineError("no prompt has been evaluated yet")
        context, logits = self._context, self._logits().copy()
        proposal = self._sampler.likeliest(logits, min(N_LOOKED_AHEAD, context.n_candidates))
        blocks = [[token_id] for token_id in proposal.token_ids.tolist()]
        states: list[list[NDArray[np.float32]]] = [[] for _ in blocks]
        sequences = range(_SIDE_SEQUENCE, _SIDE_SEQUENCE + len(blocks))
        start = self._sequence.position
        try:
            for sequence in sequences:
                context.copy_sequence(MAIN_SEQUENCE, sequence)
            for place in range(n_tokens):
                going_on = [at for at, block in enumerate(blocks) if len(block) > place]
                rows = [(blocks[at][place], start + place, sequences[at]) for at in going_on]
                context.decode(*zip(*rows, strict=True), n_outputs=len(rows))
                self._n_forward_passes += 1
                for row, (at, state) in enumerate(
                    zip(going_on, self._route.read(len(rows)), strict=True)
                ):
                    states[at].append(state)
                    if place + 1 < n_tokens and not self.is_end(blocks[at][place]):
                        blocks[at].append(int(context.logits(row).argmax()))
        finally:
            for sequence in sequences:
                context.remove_from_sequence(sequence)
            self._forget_logits()
            self._kept_logits = logits
        ahead = tuple(map(tuple, blocks))
        return replace(proposal, ahead=ahead), [np.stack(each) for each in states]

    def _evaluate_aside(self, blocks: Sequence[Block]) -> NDArray[np.float32]:
        """Evaluate these in one batch: the states of all their tokens, one block after another."""
        n_used = len(self._pending)
        if len({*blocks, *self._pending}) < len(blocks) + n_used:
            raise EngineError(f"a candidate of {list(blocks)} is evaluated twice at one step")
        if n_used + len(blocks) > self._context.n_candidates:
            raise EngineError(
                f"{n_used + len(blocks)} candidates at one step; the context was made for "
                f"{self._context.n_candidates}"
            )
        self._keep_pending_aside()
        sequences = range(n_used + 1, n_used + 1 + len(blocks))
        for sequence in sequences:
            self._context.copy_sequence(MAIN_SEQUENCE, sequence)
        start = self._sequence.position
        rows = [
            (token_id, start + place, sequence)
            for block, sequence in zip(blocks, sequences, strict=True)
            for place, token_id in enumerate(block)
        ]
        try:
            self._context.decode(*zip(*rows, strict=True), n_outputs=len(rows))
        except SafeSteerError:
            for sequence in sequences:
                self._context.remove_from_sequence(sequence)
            raise
        self._n_forward_passes += 1
        ends = np.cumsum([len(block) for block in blocks]).tolist()
        for block, sequence, end in zip(blocks, sequences, ends, strict=True):
            self._pending[block] = _Pending(sequence, row=end - 1)
        self._forget_logits()
        return self._route.read(len(rows))

    def accept(self, token_id: int) -> None:
        """Make an evaluated candidate the next token of the main sequence."""
        self.accept_block((token_id,))

    def accept_block(self, block: Block) -> None:
        """Make an evaluated block the next tokens of the main sequence."""
        chosen = self._pending.pop(block, None)
        if chosen is None or self._sampler is None:
            what = f"token {block[0]} was" if len(block) == 1 else f"block {list(block)} was"
            raise EngineError(f"{what} not evaluated at this step")
        if chosen.sequence != MAIN_SEQUENCE:
            self._adopt(chosen.sequence, len(block))
        self._discard_pending()
        self._sequence.add_evaluated(block)
        self._kept_logits, self._sequence.logits_row = chosen.logits, chosen.row
        for token_id in block:
            self._sampler.accept(token_id)

    def _keep_pending_aside(self) -> None:
        """Before another decode: move a candidate off the main sequence, and copy logits out."""
        for pending in self._pending.values():
            if pending.logits is None:
                pending.logits = self._context.logits(pending.row).copy()
            if pending.sequence == MAIN_SEQUENCE:
                pending.sequence = len(self._pending)
                self._context.copy_sequence(MAIN_SEQUENCE, pending.sequence)
                self._context.remove_from_sequence(MAIN_SEQUENCE, self._sequence.position, -1)

    def _adopt(self, sequence: int, n_tokens: int) -> None:
        if self._model.has_recurrent_state:
            # A recurrent state has no cells to share: the whole sequence takes the winner's place.
            self._context.remove_from_sequence(MAIN_SEQUENCE)
            self._context.copy_sequence(sequence, MAIN_SEQUENCE)
        else:
            position = self._sequence.position
            self._context.copy_sequence(sequence, MAIN_SEQUENCE, position, position + n_tokens)
        self._context.remove_from_sequence(sequence)

    def _discard_pending(self) -> None:
        for pending in self._pending.values():
            if pending.sequence == MAIN_SEQUENCE:
                self._context.remove_from_sequence(MAIN_SEQUENCE, self._sequence.position, -1)
            else:
                self._context.remove_from_sequence(pending.sequence)
        self._pending.clear()

    def _forget_logits(self) -> None:
        self._kept_logits = None
        self._sequence.logits_row = None

    # -- after the steps ------------------------------------------------------------------------

    def take_back(self, n_tokens: int) -> None:
        """Remove the last n tokens, and whatever candidate is pending, from the sequence.

        Raises EngineError if the prompt's last token would go too.
        """
        self._discard_pending()
        if n_tokens:
            self._kept_logits = None
        self._sequence.take_back(n_tokens)

    def rewind(self, n_tokens: int) -> None:
        """Remove the last n tokens and evaluate the one before them again: it costs one token.

        On models whose memory cannot roll back it costs what came since the last checkpoint.
        Raises EngineError if the prompt would be cut.
        """
        self._discard_pending()
        if n_tokens and self._sampler is not None:
            self._kept_logits = None
            self._sequence.rewind(n_tokens)
            self._sampler.take_back(n_tokens)

    def append(self, token_ids: Sequence[int]) -> None:
        """Evaluate tokens at the end of the sequence."""
        self._discard_pending()
        self._kept_logits = None
        self._sequence.append(token_ids)

    def is_end(self, token_id: int) -> bool:
        return self._model.is_end_of_generation(token_id)

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for; nothing for control tokens that are not `spoken`."""
        return self._model.piece(token_id, special=token_id in self._spoken)
