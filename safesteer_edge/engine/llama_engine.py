"""The decoding engine over llama.cpp: prompt, candidates one token ahead, roll-back.

Implements `guard.engine_protocol.DecodingEngine`. The main sequence is 0; candidates of a step lie
on side sequences that share its cells. Not thread-safe: one thread decodes, any may cancel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesteer_edge.engine.context import MAIN_SEQUENCE, NativeContext
from safesteer_edge.engine.hidden_states import HiddenStateRoute
from safesteer_edge.engine.model import NativeModel
from safesteer_edge.engine.projector import Projector
from safesteer_edge.engine.prompt_items import MediaRun, PromptItem, TokenRun
from safesteer_edge.engine.sampler import SamplerChain
from safesteer_edge.errors import EngineError, PromptTooLongError, SafeSteerError
from safesteer_edge.guard.engine_protocol import Proposal


class PrefillCancelledError(EngineError):
    """The prompt's evaluation was stopped between two batches."""


@dataclass(frozen=True, slots=True)
class PrefillStats:
    """What a prefill did. last_state: float32 (n_features,), at the last prompt token."""

    n_prompt_tokens: int
    n_media_tokens: int
    n_reused_tokens: int
    elapsed_s: float
    last_state: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One token, or one media chunk, of the main sequence."""

    key: int | str
    n_tokens: int
    n_positions: int
    media: MediaRun | None = None


@dataclass(slots=True)
class _Pending:
    """A candidate that was evaluated at this step. logits: None while still in native memory."""

    sequence: int
    row: int
    logits: NDArray[np.float32] | None = None


class LlamaEngine:
    """One conversation's KV cache and the step-by-step view of it that guarded decoding uses."""

    def __init__(
        self,
        context: NativeContext,
        route: HiddenStateRoute | None,
        *,
        projector: Projector | None = None,
    ) -> None:
        """route: None reads no hidden states: they come back with zero features.

        The caller owns context and projector and closes them after the engine's last use.
        """
        self._context = context
        self._model: NativeModel = context.model
        self._route = route
        self._projector = projector
        if route is not None:
            route.attach(context)
        self._entries: list[_Entry] = []
        self._position = 0
        self._pending: dict[int, _Pending] = {}
        self._logits: NDArray[np.float32] | None = None
        self._logits_row: int | None = None
        self._sampler: SamplerChain | None = None
        self._n_prompt_entries = 0
        self._control_vector: NDArray[np.float32] | None = None
        self._n_forward_passes = 0

    # -- the prompt -----------------------------------------------------------------------------

    def prefill(
        self,
        items: Sequence[PromptItem],
        sampler: SamplerChain,
        *,
        control_vector: NDArray[np.float32] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> PrefillStats:
        """Bring the main sequence to `items`, keeping what it shares with them, ready to propose.

        The prompt is evaluated without the control vector; its last token is held out and evaluated
        with the vector on, so that it shapes the first answer token. Tokens of earlier answers that
        are still in the cache stay as they were evaluated.

        control_vector: float32 (n_layer, n_embd), or None for off.
        Raises PromptTooLongError, MediaError, EngineError, PrefillCancelledError.
        """
        started_s = time.perf_counter()
        entries = _to_entries(items)
        self._check_fits(entries)
        self._sampler = sampler
        self._discard_pending()
        n_shared = self._n_shared(entries)
        n_reused_tokens = sum(entry.n_tokens for entry in self._entries[:n_shared])
        if not self._cut_to(n_shared):
            n_reused_tokens = 0
        self._n_prompt_entries, self._control_vector = len(entries), control_vector
        last_state = self._evaluate_prompt(entries, cancelled)
        return PrefillStats(
            n_prompt_tokens=sum(entry.n_tokens for entry in entries),
            n_media_tokens=sum(entry.n_tokens for entry in entries if entry.media),
            n_reused_tokens=n_reused_tokens,
            elapsed_s=time.perf_counter() - started_s,
            last_state=last_state,
        )

    def _check_fits(self, entries: Sequence[_Entry]) -> None:
        if not entries or entries[-1].media is not None:
            raise EngineError("a prompt must end with a text token")
        n_tokens = sum(entry.n_tokens for entry in entries)
        n_room = self._context.n_ctx - self._context.n_candidates - 1
        if n_tokens > n_room:
            raise PromptTooLongError(
                f"the prompt has {n_tokens} tokens, and a context of {self._context.n_ctx} has "
                f"room for {n_room}; shorten it, or raise --ctx"
            )

    def _n_shared(self, entries: Sequence[_Entry]) -> int:
        """Leading entries already in the cache; at least the last is always evaluated again."""
        n_shared = 0
        for have, want in zip(self._entries, entries[:-1], strict=False):
            if have.key != want.key:
                break
            n_shared += 1
        return n_shared

    def _cut_to(self, n_entries: int) -> bool:
        """Keep the first n entries. False: the memory cannot, and everything was forgotten."""
        if n_entries == len(self._entries):
            return True
        kept = self._entries[:n_entries]
        position = sum(entry.n_positions for entry in kept)
        if n_entries and self._context.remove_from_sequence(MAIN_SEQUENCE, position, -1):
            self._entries, self._position = kept, position
        else:
            self._forget()
        self._logits = self._logits_row = None
        return bool(self._entries) or n_entries == 0

    def _forget(self) -> None:
        self._context.clear()
        self._entries, self._position = [], 0

    def _evaluate_prompt(
        self, entries: Sequence[_Entry], cancelled: Callable[[], bool] = lambda: False
    ) -> NDArray[np.float32]:
        """Evaluate what the sequence lacks of a prompt; the state at its last token."""
        self._context.set_control_vector(None)
        if self._route is not None:
            self._route.before_prefill()
        self._evaluate_entries(entries[len(self._entries) : -1], cancelled)
        self._context.set_control_vector(self._control_vector)
        if self._route is not None:
            self._route.before_answer()
        self._evaluate_token_run(entries[-1:])
        try:
            return self._read_states(1)[0]
        except EngineError:
            self._forget()  # the graph stopped half way: no later prompt may reuse its cells
            raise

    def _evaluate_entries(
        self, entries: Sequence[_Entry], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        run: list[_Entry] = []
        for entry in entries:
            if entry.media is not None or len(run) == self._context.n_batch:
                self._evaluate_token_run(run)
                run = []
                if cancelled():
                    raise PrefillCancelledError("stopped while the prompt was being read")
            if entry.media is not None:
                self._evaluate_media(entry, entry.media)
            else:
                run.append(entry)
        self._evaluate_token_run(run)

    def _evaluate_token_run(self, run: Sequence[_Entry]) -> None:
        if not run:
            return
        token_ids = [int(entry.key) for entry in run]
        positions = range(self._position, self._position + len(run))
        self._context.decode(token_ids, positions, [MAIN_SEQUENCE] * len(run), all_outputs=False)
        self._entries.extend(run)
        self._position += len(run)
        self._logits, self._logits_row = None, len(run) - 1

    def _evaluate_media(self, entry: _Entry, media: MediaRun) -> None:
        if self._projector is None:
            raise EngineError("the prompt carries media and no projector is loaded; pass --mmproj")
        try:
            self._projector.evaluate(self._context, media, self._position)
        except EngineError:
            self._forget()  # a part of the chunk may be in the cache
            raise
        self._entries.append(entry)
        self._position += entry.n_positions

    # -- one decoding step ----------------------------------------------------------------------

    @property
    def n_free(self) -> int:
        """Tokens that still fit into the context."""
        return self._context.n_ctx - sum(entry.n_tokens for entry in self._entries)

    @property
    def n_forward_passes(self) -> int:
        """Native decode calls of decoding steps so far."""
        return self._n_forward_passes

    def propose(self) -> Proposal:
        """Run the sampler chain on the logits after the last accepted token."""
        if self._sampler is None:
            raise EngineError("no prompt has been evaluated yet")
        logits = self._logits
        if logits is None:
            if self._logits_row is None:
                raise EngineError(
                    "there are no logits after the last accepted token: accept a candidate, "
                    "or append tokens, before the next proposal"
                )
            logits = self._context.logits(self._logits_row)
        return self._sampler.propose(logits)

    def evaluate(self, token_id: int) -> NDArray[np.float32]:
        """Evaluate one candidate, on the main sequence where its cell can be taken back."""
        if self._model.has_recurrent_state or self._pending:
            return self.evaluate_candidates([token_id])[0]
        self._context.decode([token_id], [self._position], [MAIN_SEQUENCE], all_outputs=True)
        self._n_forward_passes += 1
        self._pending[token_id] = _Pending(MAIN_SEQUENCE, row=0)
        self._logits = self._logits_row = None
        return self._read_states(1)[0]

    def evaluate_candidates(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate candidates in one batch, each on its own side sequence."""
        n_used = len(self._pending)
        if len({*token_ids, *self._pending}) < len(token_ids) + n_used:
            raise EngineError(f"a candidate of {list(token_ids)} is evaluated twice at one step")
        if n_used + len(token_ids) > self._context.n_candidates:
            raise EngineError(
                f"{n_used + len(token_ids)} candidates at one step; the context was made for "
                f"{self._context.n_candidates}"
            )
        self._keep_pending_aside()
        sequences = list(range(n_used + 1, n_used + 1 + len(token_ids)))
        for sequence in sequences:
            self._context.copy_sequence(MAIN_SEQUENCE, sequence)
        positions = [self._position] * len(token_ids)
        try:
            self._context.decode(token_ids, positions, sequences, all_outputs=True)
        except SafeSteerError:
            for sequence in sequences:
                self._context.remove_from_sequence(sequence)
            raise
        self._n_forward_passes += 1
        for row, (token_id, sequence) in enumerate(zip(token_ids, sequences, strict=True)):
            self._pending[token_id] = _Pending(sequence, row=row)
        self._logits = self._logits_row = None
        return self._read_states(len(token_ids))

    def _keep_pending_aside(self) -> None:
        """Before another decode: move a candidate off the main sequence, and copy logits out."""
        for pending in self._pending.values():
            if pending.logits is None:
                pending.logits = self._context.logits(pending.row).copy()
            if pending.sequence == MAIN_SEQUENCE:
                pending.sequence = len(self._pending)
                self._context.copy_sequence(MAIN_SEQUENCE, pending.sequence)
                self._context.remove_from_sequence(MAIN_SEQUENCE, self._position, -1)

    def accept(self, token_id: int) -> None:
        """Make an evaluated candidate the next token of the main sequence."""
        chosen = self._pending.pop(token_id, None)
        if chosen is None or self._sampler is None:
            raise EngineError(f"token {token_id} was not evaluated at this step")
        if chosen.sequence != MAIN_SEQUENCE:
            self._adopt(chosen.sequence)
        self._discard_pending()
        self._logits, self._logits_row = chosen.logits, chosen.row
        self._entries.append(_Entry(token_id, 1, 1))
        self._position += 1
        self._sampler.accept(token_id)

    def _adopt(self, sequence: int) -> None:
        if self._model.has_recurrent_state:
            # A recurrent state has no cells to share: the whole sequence takes the winner's place.
            self._context.remove_from_sequence(MAIN_SEQUENCE)
            self._context.copy_sequence(sequence, MAIN_SEQUENCE)
        else:
            self._context.copy_sequence(sequence, MAIN_SEQUENCE, self._position, self._position + 1)
        self._context.remove_from_sequence(sequence)

    def _discard_pending(self) -> None:
        for pending in self._pending.values():
            if pending.sequence == MAIN_SEQUENCE:
                self._context.remove_from_sequence(MAIN_SEQUENCE, self._position, -1)
            else:
                self._context.remove_from_sequence(pending.sequence)
        self._pending.clear()

    def _read_states(self, n_rows: int) -> NDArray[np.float32]:
        if self._route is None:
            return np.empty((n_rows, 0), dtype=np.float32)
        return self._route.read(n_rows)

    # -- after the steps ------------------------------------------------------------------------

    def take_back(self, n_tokens: int) -> None:
        """Remove the last n tokens, and whatever candidate is pending, from the sequence.

        Raises EngineError if the prompt's last token would go too.
        """
        self._discard_pending()
        if n_tokens == 0:
            return
        remaining = self._entries[: max(0, len(self._entries) - n_tokens)]
        prompt, answer = remaining[: self._n_prompt_entries], remaining[self._n_prompt_entries :]
        if len(prompt) < self._n_prompt_entries:
            raise EngineError(f"cannot take back {n_tokens} tokens: the answer is shorter")
        if not self._cut_to(len(remaining)):
            # The memory cannot roll back (recurrent state): evaluate what remains once more, with
            # the control vector off for the prompt and on for the answer, as it was.
            self._evaluate_prompt(prompt)
            self._evaluate_entries(answer)
            self._logits = self._logits_row = None

    def append(self, token_ids: Sequence[int]) -> None:
        """Evaluate tokens at the end of the sequence, in one batch."""
        self._discard_pending()
        self._evaluate_entries([_Entry(token_id, 1, 1) for token_id in token_ids])

    def is_end(self, token_id: int) -> bool:
        """True for tokens that end the answer."""
        return self._model.is_end_of_generation(token_id)

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for; nothing for control tokens."""
        return self._model.piece(token_id)


def _to_entries(items: Sequence[PromptItem]) -> list[_Entry]:
    entries: list[_Entry] = []
    for item in items:
        if isinstance(item, TokenRun):
            entries.extend(_Entry(token_id, 1, 1) for token_id in item.token_ids)
        else:
            entries.append(_Entry(item.key, item.n_tokens, item.n_positions, item))
    return entries
